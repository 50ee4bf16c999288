"""What is read from W&B's files, and where an online run continues."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from motionmae.config import Config
from motionmae.runs.directory import RunFolder
from motionmae.training.trackers.trackio_run import Trackio
from motionmae.training.trackers.wandb_run import WeightsAndBiases, last_stored_step, read_records

pytest.importorskip("wandb")
from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record

BLOCK = 32768
HEADER = 7  # bytes of W&B's header of the file, and of the header of each part of a record


def history(step: int | None, padding: int = 0) -> bytes:
    items = [
        HistoryItem(nested_key=["loss"], value_json="0.5"),
        HistoryItem(nested_key=["x"], value_json="1" * padding),
    ]
    if step is not None:
        items.append(HistoryItem(nested_key=["step"], value_json=str(step)))
    return bytes(Record(history=HistoryRecord(item=items)).SerializeToString())


def log(*records: bytes) -> bytes:
    """Records in the format of LevelDB's log: no part crosses a border of blocks, and a rest below 7 bytes is empty."""
    content = b":W&B" + bytes(3)
    for record in records:
        first = True
        while True:
            left = BLOCK - len(content) % BLOCK
            if left < HEADER:
                content += bytes(left)
                continue
            part, record = record[: left - HEADER], record[left - HEADER :]
            kind = (1 if not record else 2) if first else (4 if not record else 3)
            content += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not record:
                break
    return content


def write(folder: Path, name: str, content: bytes, run_id: str = "r") -> Path:
    file = folder / f"offline-run-{name}-{run_id}" / f"run-{run_id}.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("rest", [0, 1, 6, 7, 8])
def test_records_are_read_over_borders_of_blocks(rest: int, tmp_path: Path):
    """After the first record ``rest`` bytes are left in its block; the third one takes four blocks."""
    filler = BLOCK - HEADER - HEADER - rest - len(history(1, 30_000))
    first = history(1, 30_000 + filler)
    assert (HEADER + HEADER + len(first)) % BLOCK == (BLOCK - rest) % BLOCK
    records = [first, history(2), history(3, 3 * BLOCK), history(4)]
    found = list(read_records(write(tmp_path, "a", log(*records))))
    assert [record.SerializeToString() for record in found] == records


def test_reading_ends_where_a_killed_process_stopped(tmp_path: Path):
    whole = log(history(1), history(2))
    for name, content in {
        "torn": whole[:-1], "torn header": whole[: -len(history(2)) - 1], "zeros": log(history(1)) + bytes(100),
        "damaged": log(history(1), b"\xff\xff\xff", history(3)),
    }.items():  # fmt: skip
        found = list(read_records(write(tmp_path / name, "a", content)))
        assert [record.SerializeToString() for record in found] == [history(1)], name
    assert list(read_records(write(tmp_path / "none", "a", b""))) == []


def test_the_newest_file_with_rows_says_the_last_step(tmp_path: Path):
    assert last_stored_step(tmp_path, "r") == 0
    write(tmp_path, "20260101", log(history(9)))
    write(tmp_path, "20260102", log(history(3), history(7), history(5), history(None)))
    write(tmp_path, "20260103", log(Record(exit={"exit_code": 0}).SerializeToString(), history(None)))  # type: ignore[arg-type]
    write(tmp_path, "20260104", log(history(50)), run_id="other")
    assert last_stored_step(tmp_path, "r") == 7


class WandbRun:
    def __init__(self, **options: Any) -> None:
        self.options, self.resumed, self.step = options, True, 12
        self.define_metric, self.log, self.finish = Mock(), Mock(), Mock()


@pytest.mark.parametrize(("mode", "stored"), [("online", 11), ("offline", 7)])
def test_an_online_run_continues_after_the_last_step_of_the_server(
    mode: str, stored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import wandb

    monkeypatch.setattr(wandb, "init", WandbRun)
    monkeypatch.setattr(wandb, "Image", lambda path, caption: (path, caption))
    folder = RunFolder(tmp_path / "runs/shown")
    write(folder.path / "wandb", "20260102", log(history(7)))
    config = Config(name="shown", output_dir=str(tmp_path / "runs")).updated({"log.wandb": mode})
    opened = WeightsAndBiases(config, folder, "r")
    run: Any = opened._wandb_run
    settings = run.options.pop("settings")
    assert run.options == {
        "project": "motionmae", "name": "shown", "id": "r", "dir": str(folder.path), "mode": mode, "resume": "allow",
        "config": config.model_dump(mode="json"),
    }  # fmt: skip
    assert (settings.console, settings.silent, settings.disable_git, settings.disable_code) == ("off", True, True, True)
    assert settings.x_transaction_log_flush_interval == 0.2
    assert opened.stored_step == stored
    run.define_metric.assert_called_once_with("*", step_metric="step")
    opened.picture(Path("a.png"), 3, "reconstruction")
    picture = {"reconstruction": (str(folder.path / "a.png"), "step 3")}
    opened.send({"attempt": "a", "step": 20, "time": 1.0, "loss": 0.5})
    run.log.assert_called_once_with({"loss": 0.5, "step": 20, **picture}, 20, True)
    opened.close()
    assert run.log.call_count == 1  # no picture waits
    opened.picture(Path("a.png"), 3, "reconstruction")
    opened.close()
    run.log.assert_called_with(picture, stored + 1, True)
    assert run.finish.call_count == 2


def test_an_error_of_the_service_never_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import wandb

    monkeypatch.setattr(wandb, "init", WandbRun)
    opened = WeightsAndBiases(Config(output_dir=str(tmp_path)), RunFolder(tmp_path / "run"), "")
    opened._wandb_run.log.side_effect = wandb.Error("no answer")  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="no answer"):
        opened.send({"step": 20, "loss": 0.5})


def test_a_run_of_an_older_version_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its id was the beginning of the SHA-256 of its folder."""
    import hashlib

    import wandb

    monkeypatch.setattr(wandb, "init", WandbRun)
    folder = RunFolder(tmp_path / "run")
    older = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    assert WeightsAndBiases(Config(), folder, "").run_id not in ("", older)
    (folder.path / "wandb" / f"offline-run-20260102-{older}").mkdir(parents=True)
    assert WeightsAndBiases(Config(), folder, "").run_id == older
    assert WeightsAndBiases(Config(), folder, "known").run_id == "known"


def test_trackio_continues_after_its_last_step_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trackio: Any = pytest.importorskip("trackio")
    run = SimpleNamespace(_next_step=8, log=Mock())
    made = Mock(side_effect=lambda **_: print("made") or run)  # type: ignore[func-returns-value]
    finish = Mock()
    for name, value in {"init": made, "finish": finish, "Image": lambda path, caption: (path, caption)}.items():
        monkeypatch.setattr(trackio, name, value)
    folder = RunFolder(tmp_path / "run")
    config = Config(name="shown").updated({"log.trackio_project": "videos"})
    opened = Trackio(config, folder, "")
    assert (opened.run_id[:6], len(opened.run_id)) == ("shown-", 12)
    made.assert_called_once_with(
        project="videos", name=opened.run_id, config=config.model_dump(mode="json"), resume="allow", embed=False,
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    assert opened.stored_step == 7
    opened.picture(Path("a.png"), 3, "confusion")
    run.log.assert_called_once_with({"confusion": (str(folder.path / "a.png"), "step 3")}, step=7)
    opened.metrics({"attempt": "a", "step": 8, "time": 1.0, "loss": 0.5})
    run.log.assert_called_with({"loss": 0.5}, step=8)
    opened.close()
    finish.assert_called_once_with()
    assert capsys.readouterr().out == ""
    run.log.side_effect = ValueError("no answer")
    with pytest.raises(OSError, match=r"^ValueError: no answer$"):
        opened.send({"step": 9, "loss": 0.5})
    assert Trackio(config, folder, "known").run_id == "known"

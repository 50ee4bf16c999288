"""Target files of Prometheus, and the wait for its last scrape, without an exporter process."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from monitoring import exporter
from monitoring.exporter import (
    Settings,
    is_target_of,
    main,
    publish,
    target_of,
    wait_for_last_scrape,
    withdraw,
)
from monitoring.exporter_process import _LastCommand, job_key, run_labels
from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason
from tests.monitoring.runs import config_of, label_of, settings_of


def settings(tmp_path: Path, node: int = 0, nodes: int = 2, **monitoring: Any) -> Settings:
    return settings_of(config_of(tmp_path / "runs", **monitoring), tmp_path, node, nodes)


def target(label: str, node: int, address: str = "h:1") -> str:
    return json.dumps([{"targets": [address], "labels": {"run": label, "instance": f"{label}/{node}"}}])


def test_a_target_is_labelled_by_run_and_node(tmp_path: Path):
    label = label_of(tmp_path / "runs")
    found = settings(tmp_path, 3)
    assert (found.discovery, found.label) == (tmp_path / "runs/.sd", label)
    assert found.target_file == tmp_path / f"runs/.sd/{label}-3.json"
    labels = {"run": label, "instance": f"{label}/3"}
    assert json.loads(target_of(found, "h:9")) == [{"targets": ["h:9"], "labels": labels}]
    elsewhere = settings(tmp_path, discovery=tmp_path / "sd", tls_certificate="c.pem", tls_key="k.pem")
    assert elsewhere.target_file.parent == tmp_path / "sd"
    assert json.loads(target_of(elsewhere, "h:9"))[0]["labels"]["__scheme__"] == "https"


@pytest.mark.parametrize("node", [0, 1])
def test_the_first_node_deletes_the_targets_of_nodes_that_are_no_more(node: int, tmp_path: Path):
    label, other = label_of(tmp_path / "runs"), label_of(tmp_path / "runs", "demo2")
    folder = tmp_path / "runs/.sd"
    folder.mkdir(parents=True)
    for number in (1, 2, 10):
        (folder / f"{label}-{number}.json").write_text(target(label, number))
    (folder / f"{label}-3.json").write_text("not a target")
    (folder / f"{label}-4.json").write_text(target(label, 5))  # renamed by somebody
    (folder / f"{other}-7.json").write_text(target(other, 7))
    (folder / "notes.txt").write_text("notes")
    publish(settings(tmp_path, node), "h:9")
    gone = {f"{label}-2.json", f"{label}-10.json"} if node == 0 else set()
    before = {f"{label}-{number}.json" for number in (1, 2, 3, 4, 10)} | {f"{other}-7.json", "notes.txt"}
    assert {path.name for path in folder.iterdir()} == before - gone | {f"{label}-{node}.json"}
    assert json.loads((folder / f"{label}-{node}.json").read_text())[0]["targets"] == ["h:9"]


def test_a_file_of_another_run_is_not_replaced(tmp_path: Path):
    found = settings(tmp_path)
    found.discovery.mkdir(parents=True)
    for content in ("[]", target("other-123456", 0), target(found.label, 1)):
        found.target_file.write_text(content)
        with pytest.raises(FileExistsError, match="was not written by this run"):
            publish(found, "h:9")
        assert found.target_file.read_text() == content
    found.target_file.unlink()
    found.target_file.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="was not written by this run"):
        publish(found, "h:9")


def test_what_counts_as_a_target(tmp_path: Path):
    (path := tmp_path / "r-1.json").write_text(target("r", 1))
    assert is_target_of(path, "r")
    assert not is_target_of(path, "q")
    (link := tmp_path / "r-2.json").symlink_to(path)
    assert not is_target_of(link, "r")
    for content in ("{", "[]", json.dumps(json.loads(target("r", 1)) * 2), target("r", 2)):
        path.write_text(content)
        assert not is_target_of(path, "r")
    assert not is_target_of(tmp_path / "absent.json", "r")


def test_only_the_own_target_is_withdrawn(tmp_path: Path):
    found = settings(tmp_path)
    withdraw(found, "h:9")  # there is none
    publish(found, "h:9")
    withdraw(found, "h:8")
    assert found.target_file.exists()
    withdraw(found, "h:9")
    assert not found.target_file.exists()


class Scraped:
    """A collector that was scraped some seconds ago, and is scraped again when it is looked at often enough."""

    def __init__(self, seconds_ago: float | None, again_after: int = 10**9) -> None:
        self.first = None if seconds_ago is None else time.monotonic() - seconds_ago
        self.left = again_after

    @property
    def last_scrape(self) -> float | None:
        self.left -= 1
        return self.first if self.left > 0 else time.monotonic()


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of the exporter's standard input that the trainer writes to."""
    reader, writer = os.pipe()
    with open(reader) as stdin:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(exporter.sys, "stdin", stdin)
        yield writer
        os.close(writer)


@pytest.mark.parametrize(
    ("seconds_ago", "again_after", "least", "pauses"),
    [
        (None, 10**9, 0, []),  # Prometheus does not scrape
        (151.0, 10**9, 0, []),  # or no more
        (1.0, 3, 0, [0.2]),  # it has the last values, and its answer is on the way
        (140.0, 10**9, 0.4, [0.2]),
    ],
)
def test_the_wait_for_the_last_scrape(
    seconds_ago: float | None, again_after: int, least: float, pauses: list[float], trainer: int,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    slept: list[float] = []
    monkeypatch.setattr(exporter.time, "sleep", slept.append)
    began = time.monotonic()
    wait_for_last_scrape(Scraped(seconds_ago, again_after), 0.4 if least else 600.0)  # type: ignore[arg-type]
    assert least <= time.monotonic() - began < 300
    assert slept == pauses


def test_no_scrape_is_waited_for_once_the_trainer_has_ended(trainer: int):
    os.write(trainer, b"\n")
    began = time.monotonic()
    wait_for_last_scrape(Scraped(1.0), 600.0)  # type: ignore[arg-type]
    assert time.monotonic() - began < 300


def test_an_exporter_that_cannot_begin_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(exporter.sys, "argv", ["exporter"])
    monkeypatch.setattr(exporter.sys, "stdin", io.StringIO(settings(tmp_path, 1).model_dump_json() + "\n"))

    def fail(settings: Settings) -> None:
        raise OSError("no port")

    monkeypatch.setattr(exporter, "run_exporter", fail)
    assert main() == 1
    assert "node 1 has no metrics (no port); training continues" in caplog.text
    monkeypatch.setattr(exporter.sys, "stdin", io.StringIO(settings(tmp_path, 1).model_dump_json() + "\n"))
    monkeypatch.setattr(exporter, "run_exporter", lambda settings: None)
    assert main() == 0


@pytest.mark.parametrize(
    ("rows", "error", "command"),
    [
        ([{"kind": "finish"}], None, "end after scrape"),
        ([{"kind": "stop", "reason": "preempted"}], None, "end"),
        ([{"kind": "stop", "reason": "crashed"}], None, ""),
        ([{"kind": "checkpoint"}], None, ""),
        ([], KeyboardInterrupt(), "end"),
        ([], UserError("no shards"), "end"),
        ([], RuntimeError("a bug"), ""),
        ([{"kind": "finish"}], UserError("late"), "end after scrape"),
    ],
)
def test_the_last_word_to_the_exporter(rows: list[dict[str, str]], error: BaseException | None, command: str):
    last = _LastCommand()
    for row in rows:
        last.event(row)
    if error:
        last.error(error)
    assert last.command == command
    assert {EndReason.PREEMPTED.saved, EndReason.CRASHED.saved} == {True, False}


def test_jobs_of_other_runs_ports_and_nodes_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    config = config_of(tmp_path / "runs")
    cases = [
        (config, 1, 0), (config, 2, 0), (config, 1, 1), (config.updated({"name": "other"}), 1, 0),
        (config.updated({"output_dir": str(tmp_path / "b")}), 1, 0),
    ]  # fmt: skip
    keys = [job_key(*case) for case in cases]
    assert len({key.rpartition("-")[2] for key in keys}) == len(cases)
    assert all(
        key.startswith(f"{case[0].name}-") and len(key.rpartition("-")[2]) == 12
        for key, case in zip(keys, cases, strict=True)
    )
    assert job_key(*cases[0]) == keys[0]
    monkeypatch.setenv("MASTER_ADDR", "node2")
    assert job_key(*cases[0]) != keys[0]


def test_the_hash_of_a_config_leaves_out_where_and_how_it_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    hashes = {}
    for name, changes in {
        "plain": {}, "other": {"seed": 1},
        "elsewhere": {"output_dir": "/x", "launch.nodes": 3, "monitoring.port": 1234},
    }.items():  # fmt: skip
        labels = run_labels(Config().updated(changes))
        assert labels["slurm_job_id"] == "7"
        hashes[name] = labels["config_hash"]
        assert len(hashes[name]) == 12
    assert hashes["plain"] == hashes["elsewhere"] != hashes["other"]


def test_a_scrape_of_a_node_with_a_histogram(tmp_path: Path):
    from monitoring.collector import _family, _process

    snapshot: Any = SimpleNamespace(time=time.time() + 60, pid=os.getpid())  # the clock of the file system is ahead
    found = {name: value for name, _, value in _process(snapshot)}
    assert (found["snapshot_age_seconds"], found["rank_alive"]) == (0, 1)
    assert found["rank_resident_bytes"] > 1e6
    snapshot.pid, snapshot.time = 2**22 + 1, time.time() - 100
    found = {name: value for name, _, value in _process(snapshot)}
    assert found["rank_alive"] == 0
    assert found["snapshot_age_seconds"] == pytest.approx(100, abs=50)
    assert "rank_resident_bytes" not in found
    families: dict[str, Any] = {}
    first = _family(families, "clips_total", ())
    assert _family(families, "clips_total", ()) is first
    assert first.type == "counter"

"""Reconstructions of real runs, drawn by the real process."""

import os
import subprocess
from pathlib import Path

import cv2
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from motionmae.config import Config
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import EventLog, drop_repeated, read_rows
from motionmae.training.callbacks import reconstructions as reconstruction_callback
from motionmae.training.callbacks.reconstructions import ReconstructionCallback
from motionmae.training.setup import run_training
from tests.training.launch import run_ranks, wait_until
from tests.training.replacements import Told
from tests.training.shards import STEPS, make_shards, tiny_run


def _train_patiently(config: Config) -> EndReason:
    """Train, and wait for the last picture as long as a busy machine takes to draw it."""
    reconstruction_callback.LAST_SECONDS = 300.0
    return run_training(config)


@pytest.mark.long
@pytest.mark.parametrize("zero", [1, 3])
def test_a_run_draws_its_reconstructions_and_trains_as_without(tmp_path: Path, zero: int):
    shards = make_shards(tmp_path / "shards")
    log = {"reconstruction_every_steps": STEPS // 2, "tensorboard": True}
    drawn = tiny_run(shards, tmp_path / "drawn", engine={"zero_stage": zero}, log=log, checkpoint={"keep_last": STEPS})
    plain = tiny_run(shards, tmp_path / "plain", engine={"zero_stage": zero})
    for config in (drawn, plain):
        assert run_ranks(2, _train_patiently, config) == [EndReason.FINISHED] * 2
    folder, other = (RunFolder(config.run_folder) for config in (drawn, plain))
    events = [row for row in read_rows(folder.events) if row["kind"] == "picture"]
    assert events[-1]["step"] == STEPS
    for row in events:
        assert cv2.imread(str(folder.path / row["path"])).shape[1] > 1000
    reader = EventAccumulator(str(folder.tensorboard))
    reader.Reload()
    assert [image.step for image in reader.Images("reconstruction")] == [row["step"] for row in events]
    assert [r["loss"] for r in drop_repeated(read_rows(folder.metrics))] == [
        r["loss"] for r in drop_repeated(read_rows(other.metrics))
    ]
    assert not other.reconstructions.exists()


def reconstructions(folder: RunFolder, every_steps: int) -> ReconstructionCallback:
    return ReconstructionCallback(folder, every_steps, EventLog("test"), print)


class TestReconstructionCallback:
    def test_draws_every_so_many_steps_and_at_the_end(self, tmp_path: Path):
        folder = self.folder(tmp_path)
        callback = reconstructions(folder, 100)
        callback.on_save(90)
        assert callback.poll() is None
        callback.on_save(110)
        assert self.result(callback)["step"] == 110
        callback.draw(110)
        assert callback.poll() is None
        callback.draw(120)
        assert self.result(callback)["step"] == 120

    def test_resumes_after_the_pictures_of_earlier_attempts(self, tmp_path: Path):
        folder = self.folder(tmp_path)
        folder.reconstructions.mkdir()
        (folder.reconstructions / "step-00000200.png").touch()
        callback = reconstructions(folder, 100)
        callback.on_save(290)
        assert callback.poll() is None
        callback.on_save(300)
        assert self.result(callback)["step"] == 300

    def test_reports_the_error_of_a_failed_picture(self, tmp_path: Path):
        callback = reconstructions(self.folder(tmp_path), 1)
        callback.on_save(7)
        fields = self.result(callback)
        assert "is not a run folder" in str(fields["error"])

    def test_a_read_only_folder_and_an_unknown_file_name_are_harmless(self, tmp_path: Path):
        folder = self.folder(tmp_path)
        folder.reconstructions.mkdir()
        (folder.reconstructions / "step-00000500-val.png").touch()
        folder.logs.rmdir()
        callback = reconstructions(folder, 1)
        callback.on_save(1)
        assert callback.poll() is None

    def test_close_kills_the_process(self, tmp_path: Path):
        callback = reconstructions(self.folder(tmp_path), 1)
        callback.on_save(1)
        process = callback._process
        assert process is not None
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        callback.close()
        wait_until(lambda: not Path(f"/proc/{process.pid}").exists(), "the end of the process")

    def test_the_process_sees_no_gpu_and_takes_one_thread(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for name, value in {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "7"}.items():
            monkeypatch.setenv(name, value)  # of training
        callback = reconstructions(self.folder(tmp_path), 1)
        callback.on_save(1)
        process = callback._process
        assert process is not None
        environment = Path(f"/proc/{process.pid}/environ")
        wait_until(environment.read_bytes, "the environment of the process")  # empty while the program is loaded
        variables = environment.read_bytes().split(b"\0")
        callback.close()
        found = sorted(one for one in variables if one.startswith((b"CUDA_VISIBLE_DEVICES=", b"OMP_NUM_THREADS=")))
        assert found == [b"CUDA_VISIBLE_DEVICES=", b"OMP_NUM_THREADS=1"]

    @staticmethod
    def folder(path: Path) -> RunFolder:
        folder = RunFolder(path / "run")
        folder.create()
        return folder

    @staticmethod
    def result(callback: ReconstructionCallback) -> dict[str, object]:
        fields = callback.poll(60)
        assert fields is not None
        return fields


class Painter:
    """A process that draws, which ends with ``status`` when a test lets it."""

    def __init__(self, status: int | None) -> None:
        self.status, self.killed = status, False

    def wait(self, timeout: float | None = None) -> int:
        if self.status is None and not self.killed:
            raise subprocess.TimeoutExpired("reconstruct", timeout or 0.0)
        return self.status or 0

    def kill(self) -> None:
        self.killed = True


class Drawn:
    """A callback whose processes are drawings, and what it told."""

    def __init__(self, folder: Path, every: int, monkeypatch: pytest.MonkeyPatch, *statuses: int | None) -> None:
        self.folder, self.told = RunFolder(folder / "run"), Told()
        self.folder.create()
        self.callback = ReconstructionCallback(self.folder, every, EventLog("a", [self.told]), self.told.lines.append)
        self.drawings = [Painter(status) for status in statuses]
        self.started: list[tuple[int, int]] = []
        monkeypatch.setattr(self.callback, "_start", self.start)

    def start(self, step: int, niceness: int) -> Painter:
        self.started.append((step, niceness))
        return self.drawings[len(self.started) - 1]

    def events(self) -> list[dict[str, object]]:
        return [{key: row[key] for key in ("kind", "step", "path", "error") if key in row} for row in self.told.events]


def test_one_picture_at_a_time_is_drawn_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = Drawn(tmp_path, 10, monkeypatch, None, 0)
    callback = drawn.callback
    for step in (5, 9, 10, 20):
        callback.on_save(step)
    callback.on_log({})
    assert (drawn.started, drawn.events()) == ([(10, 19)], [])
    drawn.drawings[0].status = 0
    callback.on_log({})
    callback.on_log({})
    assert drawn.events() == [{"kind": "picture", "step": 10, "path": "reconstructions/step-00000010.png"}]
    callback.on_save(19)
    callback.on_save(20)
    assert drawn.started == [(10, 19), (20, 19)]


@pytest.mark.parametrize(("every", "steps"), [(10, [10, 12]), (0, [])])
def test_the_last_picture_is_drawn_at_full_priority(
    every: int, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn = Drawn(tmp_path, every, monkeypatch, 0, 0)
    drawn.callback.on_save(10)
    drawn.callback.on_train_end(12)
    assert [step for step, _ in drawn.started] == steps
    assert [niceness for _, niceness in drawn.started] == [19, 0][: len(steps)]
    assert [row["step"] for row in drawn.events()] == steps


@pytest.mark.parametrize(("text", "error"), [("first\nlast line\n\n", "last line"), ("", "exit status 3")])
def test_a_failed_picture_is_an_event_and_a_message(
    text: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn = Drawn(tmp_path, 10, monkeypatch, 3)
    (drawn.folder.logs / "reconstruct.log").write_text(text)
    drawn.callback.on_save(10)
    drawn.callback.on_log({})
    assert drawn.events() == [{"kind": "picture", "step": 10, "error": error}]
    assert drawn.told.lines == [f"the picture of step 10 could not be drawn: {error}"]


def test_an_unfinished_picture_is_ended_with_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = Drawn(tmp_path, 10, monkeypatch, None)
    drawn.callback.close()
    drawn.callback.on_save(10)
    drawn.callback.close()
    assert drawn.drawings[0].killed


def test_a_picture_that_cannot_be_started_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    drawn = Drawn(tmp_path, 10, monkeypatch)

    def fail(step: int, niceness: int) -> Painter:
        raise OSError("no process")

    monkeypatch.setattr(drawn.callback, "_start", fail)
    drawn.callback.on_save(10)
    drawn.callback.on_save(10)
    assert caplog.text.count("the picture of step 10 cannot be drawn (no process); training continues") == 1

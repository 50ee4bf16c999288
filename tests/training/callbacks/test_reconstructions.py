"""Reconstructions of real runs, drawn by the real process."""

import os
from pathlib import Path

import cv2
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import EventLog, drop_repeated, read_rows
from motionmae.training.callbacks.reconstructions import ReconstructionCallback
from motionmae.training.setup import run_training
from tests.training.launch import run_ranks, wait_until
from tests.training.shards import STEPS, make_shards, tiny_run


@pytest.mark.long
@pytest.mark.parametrize("zero", [1, 3])
def test_a_run_draws_its_reconstructions_and_trains_as_without(tmp_path: Path, zero: int):
    shards = make_shards(tmp_path / "shards")
    log = {"reconstruction_every_steps": STEPS // 2, "tensorboard": True}
    drawn = tiny_run(shards, tmp_path / "drawn", engine={"zero_stage": zero}, log=log, checkpoint={"keep_last": STEPS})
    plain = tiny_run(shards, tmp_path / "plain", engine={"zero_stage": zero})
    for config in (drawn, plain):
        assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
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

"""Pictures of real runs, drawn by the process that draws them."""

from pathlib import Path

import cv2
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import current_rows, read_rows
from motionmae.training.callbacks.reconstructions import ReconstructionCallback
from motionmae.training.pretrain import pretrain
from tests.training.launch import run_ranks, wait_until
from tests.training.shards import STEPS, make_shards, tiny_run


@pytest.mark.long
@pytest.mark.parametrize("zero", [1, 3])
def test_a_run_shows_what_its_heads_rebuild_and_trains_as_without(tmp_path: Path, zero: int):
    shards = make_shards(tmp_path / "shards")
    log = {"reconstruction_every_steps": STEPS // 2, "tensorboard": True}
    drawn = tiny_run(shards, tmp_path / "drawn", engine={"zero_stage": zero}, log=log, checkpoint={"keep_last": STEPS})
    plain = tiny_run(shards, tmp_path / "plain", engine={"zero_stage": zero})
    for config in (drawn, plain):
        assert run_ranks(2, pretrain, config) == [EndReason.FINISHED] * 2
    folder, other = (RunFolder.of(config.output_dir, config.name) for config in (drawn, plain))
    events = [row for row in read_rows(folder.events) if row["kind"] == "picture"]
    assert events[-1]["step"] == STEPS
    for row in events:
        assert cv2.imread(str(folder.path / row["path"])).shape[1] > 1000
    reader = EventAccumulator(str(folder.tensorboard))
    reader.Reload()
    assert [image.step for image in reader.Images("reconstruction")] == [row["step"] for row in events]
    assert [r["loss"] for r in current_rows(folder.metrics)] == [r["loss"] for r in current_rows(other.metrics)]
    assert not other.reconstructions.exists()


class TestDrawing:
    def test_is_due_every_so_many_steps_and_at_the_end(self, tmp_path: Path):
        folder = self.folder(tmp_path)
        drawing = ReconstructionCallback(folder, 100)
        drawing.checkpoint(90)
        assert drawing.finished() is None
        drawing.checkpoint(110)
        assert self.outcome(drawing)["step"] == 110
        drawing.checkpoint(110, is_last=True)
        assert drawing.finished() is None
        drawing.checkpoint(120, is_last=True)
        assert self.outcome(drawing)["step"] == 120

    def test_goes_on_where_the_last_life_of_the_run_was(self, tmp_path: Path):
        folder = self.folder(tmp_path)
        folder.reconstructions.mkdir()
        (folder.reconstructions / "step-00000200.png").touch()
        drawing = ReconstructionCallback(folder, 100)
        drawing.checkpoint(290)
        assert drawing.finished() is None
        drawing.checkpoint(300)
        assert self.outcome(drawing)["step"] == 300

    def test_says_what_went_wrong(self, tmp_path: Path):
        drawing = ReconstructionCallback(self.folder(tmp_path), 1)
        drawing.checkpoint(7)
        told = self.outcome(drawing)
        assert "is not a run folder, it has no config.yaml" in str(told["error"])

    def test_a_folder_that_cannot_be_written_and_a_strange_name_stop_nobody(self, tmp_path: Path):
        folder = self.folder(tmp_path)
        folder.reconstructions.mkdir()
        (folder.reconstructions / "step-00000500-val.png").touch()
        folder.logs.rmdir()
        drawing = ReconstructionCallback(folder, 1)
        drawing.checkpoint(1)
        assert drawing.finished() is None

    def test_ends_with_the_run(self, tmp_path: Path):
        drawing = ReconstructionCallback(self.folder(tmp_path), 1)
        drawing.checkpoint(1)
        process = drawing._process
        assert process is not None
        drawing.close()
        wait_until(lambda: not Path(f"/proc/{process.pid}").exists(), "the end of the process")

    @staticmethod
    def folder(path: Path) -> RunFolder:
        folder = RunFolder(path / "run")
        folder.create()
        return folder

    @staticmethod
    def outcome(drawing: ReconstructionCallback) -> dict[str, object]:
        told = drawing.finished(60)
        assert told is not None
        return told

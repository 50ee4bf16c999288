"""Files of TensorBoard, read by TensorBoard's reader."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.training.callbacks.loggers import TensorBoard
from motionmae.training.setup import run_training
from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run


def read(folder: RunFolder) -> EventAccumulator:
    reader = EventAccumulator(str(folder.tensorboard))
    reader.Reload()
    return reader


def draw(folder: RunFolder) -> np.ndarray:
    """Write a picture of the run; return it in OpenCV's order of channels (BGR)."""
    folder.reconstructions.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cv2.imwrite(str(folder.reconstructions / "step-00000004.png"), picture)
    return picture


PICTURE = {"kind": "picture", "step": 4, "path": "reconstructions/step-00000004.png"}


def test_tensorboard_hides_points_beyond_the_checkpoint(tmp_path: Path):
    folder = RunFolder(tmp_path)
    first = TensorBoard(folder, 0)
    for step in range(1, 6):
        first.metrics({"attempt": "a", "step": step, "loss": float(step)})
    first.close()
    second = TensorBoard(folder, 3)
    for step in (4, 5):
        second.metrics({"attempt": "b", "step": step, "loss": 10.0 * step})
    second.event({"kind": "resume", "step": 3})
    second.close()
    reader = read(folder)
    assert [(s.step, s.value) for s in reader.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]
    assert "attempt" not in reader.Tags()["scalars"]


def test_tensorboard_shows_the_picture(tmp_path: Path):
    folder = RunFolder(tmp_path)
    picture = draw(folder)
    logger = TensorBoard(folder, 0)
    logger.event(PICTURE)
    logger.event({"kind": "picture", "step": 8, "error": "no checkpoint"})
    with pytest.raises(OSError, match="No such file"):
        logger.event(PICTURE | {"path": "reconstructions/absent.png"})
    logger.close()
    (shown,) = read(folder).Images("reconstruction")
    assert shown.step == 4
    decoded = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded, picture)


def test_a_run_whose_logger_cannot_be_opened_still_trains(tmp_path: Path):
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs", log={"tensorboard": True})
    folder = RunFolder(config.run_folder)
    folder.create()
    folder.tensorboard.write_text("no folder")
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2

"""Files of TensorBoard, read by TensorBoard's reader."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import EventLog
from motionmae.training.callbacks import loggers
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


@pytest.mark.parametrize(
    ("log", "tools"),
    [({}, []), ({"wandb": "offline"}, ["wandb"]), ({"wandb": "online", "trackio": True}, ["wandb", "trackio"]),
     ({"mlflow": True, "tensorboard": True}, ["mlflow"])],
)  # fmt: skip
def test_the_loggers_of_the_config_are_opened_at_the_resumed_step(
    log: dict[str, Any], tools: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened: list[Any] = []
    openers = {"wandb": loggers.WeightsAndBiases, "mlflow": loggers.MLflow, "trackio": loggers.Trackio}
    monkeypatch.setattr(loggers, "open_tracker", lambda *words: opened.append(words) or f"the tracker {words[0]}")
    monkeypatch.setattr(loggers, "TensorBoard", lambda folder, step: f"TensorBoard at {step}")
    config = tiny_run(tmp_path, tmp_path, log={"tensorboard": False, **log})
    folder, events = RunFolder(tmp_path), EventLog("a")
    loggers.add_loggers(events, config, folder, 7)
    assert opened == [(name, openers[name], config, folder, 7) for name in tools]
    boards = ["TensorBoard at 7"] if log.get("tensorboard") else []
    assert events._sinks == [*boards, *(f"the tracker {name}" for name in tools)]
    monkeypatch.setattr(loggers, "open_tracker", lambda *words: None)  # a resumed run whose server does not answer
    alone = EventLog("a")
    loggers.add_loggers(alone, config, folder, 7)
    assert alone._sinks == boards


def test_events_are_text_and_titles_are_tags(tmp_path: Path):
    folder = RunFolder(tmp_path)
    draw(folder)
    logger = TensorBoard(folder, 0)
    logger.event({**PICTURE, "title": "confusion"})
    logger.event({"kind": "resume", "step": 5, "path": "<b>"})
    logger.metrics({"attempt": "a", "step": 6, "loss": 0.5, "lr": 1})
    logger.close()
    reader = read(folder)
    assert reader.Tags()["images"] == ["confusion"]
    assert sorted(reader.Tags()["scalars"]) == ["loss", "lr"]
    texts = reader.Tensors("events/text_summary")
    assert [text.step for text in texts] == [4, 5]
    assert texts[1].tensor_proto.string_val[0] == b'    {"kind": "resume", "step": 5, "path": "<b>"}'

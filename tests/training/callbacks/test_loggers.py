"""Files of TensorBoard and Weights & Biases, read by TensorBoard's reader and W&B's protocol buffers."""

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from motionmae.config import Config, LogConfig
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.training.callbacks.loggers import TensorBoard, WeightsAndBiases
from motionmae.training.setup import run_training
from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run

CONFIG = Config(name="shown", log=LogConfig(wandb="offline", wandb_project="videos"))


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


def wandb_records(file: Path) -> Iterator[object]:
    """Read the records of an offline run from a LevelDB log: blocks of 32 KiB with (checksum, length, kind, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, block, position, parts = file.read_bytes(), 32768, 7, b""  # W&B's header has seven bytes
    while position + 7 <= len(content):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.mark.long
def test_wandb_keeps_curves_and_pictures_of_both_attempts_offline(tmp_path: Path):
    folder = RunFolder(tmp_path)
    draw(folder)
    for losses in ({1: 0.5, 2: 0.25}, {2: 0.25, 3: 0.125}):
        logger = WeightsAndBiases(CONFIG, folder)
        for step, loss in losses.items():
            logger.metrics({"attempt": "a", "step": step, "time": 1.0, "loss": loss})
        logger.event(PICTURE)
        logger.event({"kind": "finish", "step": 3})
        logger.close()
        time.sleep(1)  # W&B names files by the second
    attempts = sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(attempts) == 2
    names, rows = set(), []
    for file in attempts:
        for record in wandb_records(file):
            if record.HasField("run"):
                names.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.HasField("history"):
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items() if key[0] != "_"})
    assert len(names) == 1
    assert next(iter(names))[1:] == ("videos", "shown")
    assert [(r["step"], r["loss"]) for r in rows if "loss" in r] == [(1, 0.5), (2, 0.25), (2, 0.25), (3, 0.125)]
    assert [r["step"] for r in rows if "loss" not in r] == [4, 4]
    assert len(list(folder.path.glob("wandb/offline-run-*/files/media/images/*.png"))) == 2


def test_wandb_without_a_key_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"log.wandb=online .*set log.wandb=offline"):
        WeightsAndBiases(CONFIG.updated({"log": LogConfig(wandb="online")}), RunFolder(tmp_path))


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.wandb=online needs wandb: pip install"):
        WeightsAndBiases(CONFIG.updated({"log": LogConfig(wandb="online")}), RunFolder(tmp_path))


def test_a_run_whose_logger_cannot_be_opened_still_trains(tmp_path: Path):
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs", log={"tensorboard": True})
    folder = RunFolder(config.run_folder)
    folder.create()
    folder.tensorboard.write_text("no folder")
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2

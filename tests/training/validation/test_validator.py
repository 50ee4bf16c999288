"""What a validation logs, writes, remembers and gives way to."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from motionmae.config import Config
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.stop_requests import Request
from motionmae.runs.best_checkpoint import Best
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import EventLog
from motionmae.training.validation import validator as module
from motionmae.training.validation.measure import Measured, UnreadableShardsError
from motionmae.training.validation.validator import (
    StopPause,
    StopValidationError,
    Validator,
    build_measurements,
    build_validator,
    protocol_of,
)
from motionmae.training.validation_record import ValidationRecord
from tests.training.replacements import NOTHING, STOP, Told
from tests.training.shards import make_shards, tiny_run

SAVE = Request(None, save=True)
UNMIXED = {"finetune.mixup": 0.0, "finetune.cutmix": 0.0, "task": "finetune"}
TOP1 = {"loss": 1.5, "top1": 50.0, "top5": 100.0}


def a_validator(tmp_path: Path, told: Told, *measurements: Any, rank: int = 0, **validation: Any) -> Any:
    """A validator of a fine-tuning with two classes and three steps an epoch."""
    settings = {"shards": "held-out", "every_steps": 2, **validation}
    changes = {f"validation.{key}": value for key, value in settings.items()}
    config = tiny_run(tmp_path / "shards", tmp_path / "runs").updated({**UNMIXED, **changes})
    folder = RunFolder(tmp_path / "runs/tiny")
    folder.create()
    return Validator(
        config=config,
        rank=DistributedContext(rank=rank, local_rank=rank, world=2, device=torch.device("cpu")),
        engine=SimpleNamespace(evaluation=lambda: nullcontext("model")),  # type: ignore[arg-type]
        folder=folder,
        lease=Mock(),
        events=EventLog("a", [told]),
        watchdog=Mock(during=Mock(return_value=nullcontext())),
        log=told.lines.append,
        class_names=("a", "b"),
        measurements=measurements,
        steps_per_epoch=3,
    )


def measured(figures: dict[str, float], missing: int = 0, confusion: Any = None) -> Any:
    return Mock(measure=Mock(return_value=Measured(figures, 8, missing, confusion)))


def test_steps_and_patience(tmp_path: Path):
    validator = a_validator(tmp_path, Told(), patience=3)
    assert [step for step in range(1, 7) if validator.is_due(step)] == [2, 4, 6]
    assert [validator.stops_early(ValidationRecord(waited=waited)) for waited in (0, 2, 3, 4)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert not a_validator(tmp_path, Told()).stops_early(ValidationRecord(waited=9))
    by_epochs = a_validator(tmp_path, Told(), every_steps=0, every_epochs=2)
    assert [step for step in range(1, 13) if by_epochs.is_due(step)] == [6, 12]


def test_a_pause_remembers_a_request_to_save_and_ends_at_a_request_to_stop():
    requests = Mock()
    watchdog = Mock()
    watchdog.limits.step_seconds = 60.0
    pause = StopPause(requests, watchdog, "validating step 4")
    for found, expected in ((NOTHING, NOTHING), (SAVE, SAVE), (NOTHING, SAVE)):
        requests.finish_sync.return_value = found
        pause.begin()
        pause.end()
        assert pause.request == expected
    watchdog.expect.assert_called_with("validating step 4", 60.0)
    assert requests.begin_sync.call_count == 3
    requests.finish_sync.return_value = STOP
    with pytest.raises(StopValidationError) as stop:
        pause.end()
    assert stop.value.request == Request(EndReason.PREEMPTED, save=True)


def test_a_validation_is_logged_written_and_remembered(tmp_path: Path):
    told = Told()
    counts = np.array([[3, 1], [2, 2]])
    first, second = measured(TOP1, 1, counts), measured({"knn": 25.0}, 2)
    validator = a_validator(tmp_path, told, first, second)
    found = validator.run(4, ValidationRecord(2, Best(2, "top1", 40.0), waited=1), SAVE, Mock())
    assert found.record == ValidationRecord(4, Best(4, "top1", 50.0))
    assert (found.request, found.is_best) == (SAVE, True)
    assert found.row == {"val_step": 4, "val_loss": 1.5, "val_top1": 50.0, "val_top5": 100.0, "val_knn": 25.0}
    assert first.measure.call_args.args[0] == second.measure.call_args.args[0] == "model"
    picture, event = told.events
    assert picture == {"kind": "picture", "step": 4, "path": "validation/step-00000004.png", "title": "confusion"}
    assert event.pop("seconds") > 0
    figures = {**TOP1, "knn": 25.0, "videos": 8, "missing": 3}
    assert event == {"kind": "validation", "step": 4, "epoch": 4 / 3, "is_best": True, **figures}
    assert told.lines[0].startswith(
        "validation of step 4: loss 1.5, top-1 50.0 %, top-5 100.0 %, k-NN 25.0 %, 8 videos"
    )
    assert told.lines[0].endswith(" s; the best so far")
    content = json.loads((validator.folder.validation / "step-00000004.json").read_text())
    assert content == {"step": 4, **figures, "classes": ["a", "b"], "confusion": [[3, 1], [2, 2]]}
    assert (validator.folder.validation / "step-00000004.png").read_bytes()[:4] == b"\x89PNG"
    validator.lease.check.assert_called_once_with()
    limit = validator.watchdog.limits.startup_seconds
    validator.watchdog.during.assert_called_once_with("validating step 4", limit)


@pytest.mark.parametrize(
    ("patience", "remark"),
    [(0, "; the best is top1 60 of step 2"),
     (5, "; the best is top1 60 of step 2, 2 of 5 validations without a better one")],
)  # fmt: skip
def test_a_validation_without_a_new_best_names_it(patience: int, remark: str, tmp_path: Path):
    told = Told()
    validator = a_validator(tmp_path, told, measured(TOP1), patience=patience)
    found = validator.run(4, ValidationRecord(2, Best(2, "top1", 60.0), waited=1), NOTHING, Mock())
    assert (found.record.waited, found.is_best) == (2, False)
    assert told.lines[0].endswith(f" s{remark}")
    assert [row["kind"] for row in told.events] == ["validation"]  # no confusion matrix, no picture
    assert told.events[0]["is_best"] is False


def test_an_improvement_below_min_delta_is_none(tmp_path: Path):
    validator = a_validator(tmp_path, Told(), measured(TOP1), min_delta=10.0)
    assert not validator.run(4, ValidationRecord(2, Best(2, "top1", 40.0)), NOTHING, Mock()).is_best
    assert validator.run(4, ValidationRecord(2, Best(2, "top1", 39.9)), NOTHING, Mock()).is_best


def test_without_a_metric_no_validation_is_the_best(tmp_path: Path):
    told = Told()
    validator = a_validator(tmp_path, told, measured(TOP1), metric="off")
    found = validator.run(4, ValidationRecord(), NOTHING, Mock())
    assert (found.record, found.is_best) == (ValidationRecord(4), False)
    assert told.lines[0].endswith(" s")


@pytest.mark.parametrize("before", [True, False])
def test_a_stop_leaves_the_validation_to_the_next_attempt(before: bool, tmp_path: Path):
    told = Told()
    measurement = Mock(measure=Mock(side_effect=StopValidationError(STOP)))
    validator = a_validator(tmp_path, told, measurement)
    record = ValidationRecord(2, Best(2, "top1", 40.0))
    found = validator.run(4, record, STOP if before else NOTHING, Mock())
    assert measurement.measure.called != before
    assert (found.record, found.request) == (ValidationRecord(2, Best(2, "top1", 40.0), owed=True), STOP)
    assert (told.events, found.row, found.is_best) == ([], {}, False)
    assert "the validation of step 4 is left to the next attempt" in told.lines[0]


def test_shards_that_cannot_be_read_do_not_end_training(tmp_path: Path):
    told = Told()
    validator = a_validator(tmp_path, told, Mock(measure=Mock(side_effect=UnreadableShardsError("gone"))))
    found = validator.run(4, ValidationRecord(2, owed=True, waited=1), SAVE, Mock())
    assert (found.record, found.request, found.row) == (ValidationRecord(4, waited=1), SAVE, {})
    (event,) = told.events
    assert event.pop("seconds") >= 0
    assert event == {"kind": "validation", "step": 4, "error": "gone"}
    assert told.lines == ["step 4 was not validated (gone); training continues"]


def test_the_newest_and_the_best_files_stay(tmp_path: Path):
    validator = a_validator(tmp_path, Told(), measured(TOP1))
    folder = validator.folder.validation
    folder.mkdir()
    for step in (2, 4, 6):
        for ending in ("json", "png"):
            (folder / f"step-{step:08d}.{ending}").touch()
    (folder / "notes.txt").touch()
    (folder / "step-00000003.json").mkdir()
    validator.run(8, ValidationRecord(6, Best(4, "top1", 60.0)), NOTHING, Mock())
    assert sorted(path.name for path in folder.iterdir()) == [
        "notes.txt", "step-00000003.json", "step-00000004.json", "step-00000004.png", "step-00000008.json",
    ]  # fmt: skip


def test_other_ranks_write_nothing_and_a_full_disk_is_a_message(tmp_path: Path):
    told = Told()
    other = a_validator(tmp_path, told, measured(TOP1, 0, np.eye(2, dtype=np.int64)), rank=1)
    other.run(4, ValidationRecord(), NOTHING, Mock())
    assert not other.folder.validation.exists()
    assert [row["kind"] for row in told.events] == ["validation"]
    validator = a_validator(tmp_path, told, measured(TOP1, 0, np.eye(2, dtype=np.int64)))
    validator.folder.validation.write_text("a file")
    assert validator.run(4, ValidationRecord(), NOTHING, Mock()).is_best
    assert any("cannot be written (" in line and line.endswith("); training continues") for line in told.lines)
    assert [row["kind"] for row in told.events] == ["validation"] * 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return make_shards(folder / "one", samples=2, classes=2), make_shards(folder / "two", samples=3, classes=2)


def test_figures_of_other_shards_views_or_neighbours_are_not_compared(shards: tuple[Path, Path], tmp_path: Path):
    one, two = map(str, shards)
    finetune = tiny_run(shards[0], tmp_path, validation={"shards": one}).updated(UNMIXED)
    pretrain = tiny_run(shards[0], tmp_path, validation={"shards": one})
    knn = pretrain.updated({"validation.knn_train": two, "validation.metric": "knn"})
    cases = [
        finetune,
        *(finetune.updated({f"validation.{key}": value}) for key, value in
          {"shards": two, "clips": 2, "crops": 3, "metric": "loss"}.items()),
        pretrain,
        pretrain.updated({"validation.heldout_clips": 9}),
        knn,
        *(knn.updated({f"validation.{key}": value}) for key, value in {"knn_k": 3, "knn_test": two}.items()),
        knn.updated({"validation.knn_train": one}),
    ]  # fmt: skip
    assert len({protocol_of(case) for case in cases}) == len(cases)
    same = {"finetune.drop_path": 0.3, "validation.batch_size": 3, "validation.heldout_clips": 9}
    assert protocol_of(finetune.updated(same)) == protocol_of(finetune)
    assert protocol_of(pretrain.updated({"validation.clips": 2})) == protocol_of(pretrain)


def test_what_is_measured(shards: tuple[Path, Path], tmp_path: Path):
    one, two = map(str, shards)
    pretrain = tiny_run(shards[0], tmp_path, validation={"shards": one})
    cases: dict[str, Config] = {
        "HeadLosses": pretrain,
        "HeadLosses KnnAccuracy": pretrain.updated({"validation.knn_train": two}),
        "Accuracy": pretrain.updated(UNMIXED),
    }
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    for names, config in cases.items():
        for stage in (2, 3):
            found = build_measurements(config, ("bar0", "bar1"), SimpleNamespace(stage=stage), rank)  # type: ignore[arg-type]
            assert " ".join(type(each).__name__ for each in found) == names
            assert all(each._sharded == (stage == 3) for each in found)  # type: ignore[attr-defined]
    nothing: Any = None
    without = pretrain.updated({"validation.shards": ""})
    assert build_validator(without, *[nothing] * 8) is None


def test_a_validator_has_the_parts_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "rank_zero_first", lambda rank, action: action())
    asked: list[Any] = []
    monkeypatch.setattr(module, "build_measurements", lambda *words: asked.append(words) or ["a measurement"])
    config: Any = tiny_run(tmp_path, tmp_path, validation={"shards": "held-out"})
    loader: Any = SimpleNamespace(manifest=SimpleNamespace(class_names=("a", "b")), steps_per_epoch=7)
    parts: list[Any] = ["engine", "rank", "folder", "lease", "events", "watchdog", print]
    found = build_validator(config, loader, *parts)
    assert asked == [(config, ("a", "b"), "engine", "rank")]
    names = ("engine", "rank", "folder", "lease", "events", "watchdog", "log")
    assert [getattr(found, name) for name in names] == parts
    assert found is not None
    assert (found.class_names, found.measurements, found.steps_per_epoch) == (("a", "b"), ["a measurement"], 7)

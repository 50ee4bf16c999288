"""Where an attempt continues, and when nothing is left to do."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from motionmae.config import Config
from motionmae.distributed.context import DistributedContext
from motionmae.errors import UserError
from motionmae.json_text import parse_json
from motionmae.runs.best_checkpoint import Best
from motionmae.runs.events import EventLog
from motionmae.training import resume
from motionmae.training.resume import damage_logger, find_checkpoint, is_complete, load_train_state
from motionmae.training.state import TrainState
from motionmae.training.validation_record import ValidationRecord
from tests.training.replacements import Told

RANK = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
DISK = SimpleNamespace(step=6, source="disk")


@pytest.mark.parametrize(
    ("step", "waited", "owed", "patience", "shards", "complete"),
    [
        (8, 0, False, 0, "val", False),
        (9, 0, False, 0, "val", True),
        (10, 0, False, 0, "val", True),
        (9, 0, True, 0, "val", False),  # the last validation is owed
        (9, 0, True, 0, "", True),  # and nobody asks for it any more
        (4, 1, False, 2, "val", False),
        (4, 2, False, 2, "val", True),  # stopped early
        (4, 2, True, 2, "val", False),
        (4, 2, False, 0, "val", False),
    ],
)
def test_a_run_is_complete_after_its_last_step_or_early_stopping(
    step: int, waited: int, owed: bool, patience: int, shards: str, complete: bool
):
    config = Config().updated({"task": "finetune", "validation.shards": shards, "validation.patience": patience})
    state = TrainState(step=step, validation=ValidationRecord(waited=waited, owed=owed))
    assert is_complete(state, config, total_steps=9) == complete


def test_patience_counts_only_with_held_out_shards():
    config: Any = SimpleNamespace(validation=SimpleNamespace(shards="", patience=2))
    assert not is_complete(TrainState(step=4, validation=ValidationRecord(waited=2)), config, 9)


def test_damage_is_logged_at_the_last_step(caplog: pytest.LogCaptureFixture):
    told = Told()
    events = EventLog("a", [told])
    events.last_step = 7
    damage_logger(events, told.lines.append)(Path("checkpoints/step-6"), "a checksum differs")
    assert told.events == [{"kind": "checkpoint_damaged", "step": 7, "path": "step-6", "reason": "a checksum differs"}]
    assert told.lines == [
        "checkpoint step-6 is damaged (a checksum differs): trying another copy or the previous checkpoint"
    ]


class Places:
    """What is found in memory at each look, and on disk."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, memory: list[Any], disk: Any, positions: tuple[int, int]
    ) -> None:
        self.memory, self.disk, self.positions = memory, disk, list(positions)
        self.store = Mock()
        monkeypatch.setattr(resume, "run_on_rank_zero", lambda rank, action: action())
        monkeypatch.setattr(resume, "find_in_memory", lambda *_: self.memory.pop(0))
        monkeypatch.setattr(resume, "newest_position", lambda store: self.positions.pop(0))
        monkeypatch.setattr(resume.sharded, "find_newest", self.find_newest)

    def find_newest(self, *_: Any) -> Any:
        if isinstance(self.disk, Exception):
            raise self.disk
        return self.disk

    def find(self, check: Any = lambda found: None, rank: DistributedContext = RANK) -> Any:
        copies: Any = SimpleNamespace(folder="f", lease="l", nodes=["n"])
        return find_checkpoint(self.store, rank, copies, check, lambda path, defect: None)


def in_memory(base: str | None = "step-4") -> Any:
    return SimpleNamespace(step=8, source="memory", base=base)


def refuse(found: Any) -> None:
    raise UserError("seed=1 (was 0)")


def test_a_complete_copy_in_memory_comes_first(monkeypatch: pytest.MonkeyPatch):
    found = in_memory()
    places = Places(monkeypatch, [found], DISK, (6, 6))
    assert places.find() is found
    places.store.discard_unfinished.assert_called_once_with()
    # with a checkpoint on disk, the settings were checked before
    assert Places(monkeypatch, [found], DISK, (6, 6)).find(refuse) is found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_copy_without_a_checkpoint_must_fit_the_settings(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    alone = in_memory(base=None)
    assert Places(monkeypatch, [alone], None, (0, 0)).find() is alone
    places = Places(monkeypatch, [alone], None, (0, 0))
    assert places.find(refuse, DistributedContext(rank, rank, 2, torch.device("cpu"))) is None
    places.store.discard_unfinished.assert_not_called()
    assert ("the copy of step 8 in memory is not used: seed=1 (was 0)" in caplog.text) == (rank == 0)


@pytest.mark.parametrize(
    ("second", "disk", "positions", "expected"),
    [
        (None, DISK, (6, 6), "disk"),  # no second look
        (in_memory(), DISK, (8, 6), "memory"),  # a newer checkpoint on disk was damaged
        (None, DISK, (8, 6), "disk"),
        (in_memory(), UserError("all are damaged"), (8, 8), "memory"),
        (None, None, (0, 0), None),
    ],
)
def test_memory_is_looked_at_again_if_the_disk_has_lost_its_newest(
    second: Any, disk: Any, positions: tuple[int, int], expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    places = Places(monkeypatch, [None, second], disk, positions)
    found = places.find()
    assert (found.source if found else None) == expected
    looked_again = isinstance(disk, Exception) or positions[1] < positions[0]
    assert len(places.memory) == (0 if looked_again else 1)


def test_without_a_copy_the_error_of_the_disk_counts(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="all are damaged"):
        Places(monkeypatch, [None, None], UserError("all are damaged"), (8, 8)).find()


@pytest.mark.parametrize("shards", ["", "val"])
def test_the_state_of_a_checkpoint_and_its_record_under_the_protocol_of_this_attempt(
    shards: str, monkeypatch: pytest.MonkeyPatch
):
    record = ValidationRecord(4, Best(4, "top1", 50.0), protocol="old")
    state = TrainState(step=4, data_step=6, skipped=1)
    monkeypatch.setattr(resume, "run_on_rank_zero", lambda rank, action: action())
    monkeypatch.setattr(resume, "check_saved", lambda *_: SimpleNamespace(trainer=state))
    monkeypatch.setattr(resume, "load_validation_record", lambda *_: record)
    monkeypatch.setattr(resume, "protocol_of", lambda config: "new")
    nothing: Any = None
    config = Config().updated({"validation.shards": shards})
    found = load_train_state(nothing, nothing, config, RANK, nothing)
    assert found == TrainState(validation=ValidationRecord(protocol="new" if shards else ""))
    found = load_train_state(DISK, nothing, config, RANK, nothing)  # type: ignore[arg-type]
    assert (found.step, found.data_step, found.skipped) == (4, 6, 1)
    assert found.validation == (ValidationRecord(protocol="new") if shards else record)


def test_settings_and_data_of_a_checkpoint_are_compared_with_those_of_this_attempt(monkeypatch: pytest.MonkeyPatch):
    compared: list[Any] = []
    monkeypatch.setattr(resume, "check_same_run", lambda saved, config: compared.append((saved, config)))
    monkeypatch.setattr(resume, "check_same_stream", lambda saved, identity: compared.append((saved, identity)))
    content = {
        "config": {"seed": 1}, "loader": {"at": 6}, "trainer": {"step": 4, "data_step": 6, "validation": {"waited": 2}},
        "writer": {"world": 3},
    }  # fmt: skip
    checkpoint: Any = SimpleNamespace(state=lambda schema: parse_json(json.dumps(content).encode(), schema))
    config, loader = Config(), SimpleNamespace(identity={"seed": 0})
    found = resume.check_saved(checkpoint, config, loader)  # type: ignore[arg-type]
    assert compared == [({"seed": 1}, config), ({"at": 6}, {"seed": 0})]
    assert (found.trainer, found.task) == (TrainState(4, 6, validation=ValidationRecord(waited=2)), {})

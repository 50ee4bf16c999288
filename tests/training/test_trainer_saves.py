"""Saves, rollbacks, corrupt samples and the end of a run, as the trainer logs them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from motionmae.checkpointing import sharded
from motionmae.checkpointing.async_checkpointer import SaveResult
from motionmae.distributed.stop_requests import Request
from motionmae.errors import UserError
from motionmae.runs.best_checkpoint import Best
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Phase
from motionmae.training import trainer as module
from motionmae.training.nonfinite import SkippedStep
from motionmae.training.state import TrainState
from motionmae.training.validation_record import ValidationRecord
from tests.training.replacements import NOTHING, STOP, Told, a_trainer

SAVED = SaveResult(4, SimpleNamespace(folder=Path("step-4"), bytes=70), "", 1.0, 2.0, 3.0)  # type: ignore[arg-type]
FAILED = replace(SAVED, checkpoint=None, error="No space left")
LOSS = SkippedStep("loss", [1], [17, 42])


def test_a_save_is_logged_with_its_times_and_its_step(tmp_path: Path):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    trainer.save_interval, trainer.failed_saves, trainer.state.step = Mock(), 3, 5
    trainer.log_save(None)
    assert (told.events, trainer.failed_saves) == ([], 3)
    trainer.log_save(SAVED)
    times = {"seconds": 3.0, "blocking": 2.0, "waited": 1.0}
    assert told.events == [{"kind": "checkpoint", "step": 4, "path": "step-4", "bytes": 70, **times}]
    assert told.calls == [("on_save", 4)]
    assert (trainer.failed_saves, trainer.newest_saved, told.lines) == (0, "step-4", [])
    trainer.save_interval.add.assert_called_once_with(SAVED)
    trainer.log_save(replace(SAVED, blocking=3.0))  # the last save, for which training waits
    assert trainer.save_interval.add.call_count == 1


@pytest.mark.parametrize(("waited", "lines"), [(10.0, 0), (10.1, 1)])
def test_a_slow_disk_is_named_after_ten_seconds(waited: float, lines: int, tmp_path: Path):
    told = Told()
    a_trainer(tmp_path, told).log_save(replace(SAVED, waited=waited))
    assert len(told.lines) == lines
    assert all("raise checkpoint.every_steps (now 2)" in line for line in told.lines)


def test_failed_saves_are_counted_and_only_the_last_one_is_fatal(tmp_path: Path):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    for _ in range(2):
        trainer.log_save(FAILED)
    failed = {"kind": "checkpoint_failed", "step": 4, "error": "No space left"}
    assert told.events == [{**failed, "failures": 1}, {**failed, "failures": 2}]
    assert told.lines[1].endswith("(No space left); training continues, 2 saves in a row have failed")
    assert (told.calls, trainer.newest_saved) == ([], "step-3")
    trainer.state.step = 9
    trainer.log_save(replace(FAILED, step=8))  # an older one is not the last
    for rank in (0, 1):
        trainer.rank = replace(trainer.rank, rank=rank)
        with pytest.raises(UserError, match=r"of step 9 cannot be written .*make room and run the same") as fatal:
            trainer.log_save(replace(FAILED, step=9))
        assert fatal.value.already_reported == (rank == 1)


@pytest.mark.parametrize(("step", "best"), [(4, 2), (5, 4)])
def test_a_best_checkpoint_that_was_not_saved_is_not_the_best(step: int, best: int, tmp_path: Path):
    trainer = a_trainer(tmp_path, Told())
    trainer.former_record = ValidationRecord(best=Best(2, "top1", 50.0))
    trainer.state.validation = ValidationRecord(best=Best(4, "top1", 60.0))
    trainer.log_save(replace(FAILED, step=step))
    assert trainer.state.validation.best.step == best


def test_the_end_of_a_run_is_logged_after_the_callbacks(tmp_path: Path):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    trainer.store = Mock(complete=lambda: [SimpleNamespace(folder=f"step-{step}") for step in (8, 9)])
    trainer.state = TrainState(step=9, validation=ValidationRecord(best=Best(6, "loss", 0.5)))
    trainer.end(EndReason.FINISHED)
    assert (told.calls, told.events) == ([("on_train_end", 9)], [{"kind": "finish", "step": 9}])
    end = "is complete after 9 steps; the weights are in step-9; --step best takes those of step 6, the best by"
    assert end in told.lines[0]
    trainer.memory_copies.discard.assert_called_once_with()


@pytest.mark.parametrize(
    ("reason", "failed", "text"),
    [
        (
            EndReason.STOPPED,
            0,
            "stopped by the file {stop} after step 4; all steps are saved: the same command resumes",
        ),
        (EndReason.PREEMPTED, 1, "stopped by a signal after step 4; the last steps are not saved: the same command"),
    ],
)
def test_a_stop_says_what_stopped_the_run_and_what_is_saved(reason: EndReason, failed: int, text: str, tmp_path: Path):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    trainer.failed_saves = failed
    trainer.end(reason)
    assert (told.calls, told.events) == ([], [{"kind": "stop", "step": 4, "reason": reason.value}])
    assert told.lines[0].startswith(text.format(stop=tmp_path / "runs/tiny/stop"))
    assert trainer.memory_copies.discard.call_count == (0 if failed else 1)  # they hold the unsaved steps


def test_corrupt_samples_of_all_ranks_are_counted_once_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = Told()
    trainer = a_trainer(tmp_path, told, data={"max_corrupt_samples": 3})
    trainer.loader.corrupt_samples = {7: "decode"}
    others: dict[int, str] = {}
    monkeypatch.setattr(module, "gather_objects", lambda mine: [mine, others])
    trainer.count_corrupt()
    trainer.count_corrupt()
    others |= {9: "crop", 7: "decode", 11: "decode"}
    trainer.count_corrupt()
    assert trainer.state.corrupt == {"7": "decode", "9": "crop", "11": "decode"}
    assert told.events == [
        {"kind": "corrupt_sample", "step": 4, "samples": {"7": "decode"}, "total": 1, "reasons": {"decode": 1}},
        {"kind": "corrupt_sample", "step": 4, "samples": {"9": "crop", "11": "decode"}, "total": 3,
         "reasons": {"decode": 2, "crop": 1}},
    ]  # fmt: skip
    assert len(told.lines) == 2
    assert told.lines[1].startswith("3 samples could not be read so far")
    others[2] = "crop"
    trainer.rank = replace(trainer.rank, rank=1)
    with pytest.raises(UserError, match=r"4 samples .* more than data.max_corrupt_samples=3") as error:
        trainer.count_corrupt()
    assert error.value.already_reported


@pytest.mark.parametrize("cause", ["overflow", "gradient"])
def test_a_skipped_step_is_logged_and_more_than_ten_roll_back(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    monkeypatch.setattr(module.nonfinite, "find_cause", lambda *_: SkippedStep(cause, [], []))
    result = SimpleNamespace(losses=None, samples=None)
    found = [trainer.count_skipped(result) for trainer.state.step in range(4, 15)]
    assert found[:10] == [None] * 10
    assert (found[10] is None) == (cause == "overflow")
    assert told.events[0] == {
        "kind": "nonfinite",
        "step": 4,
        "data_step": 6,
        "cause": cause,
        "ranks": [],
        "samples": [],
    }
    assert len(told.events) == 11
    assert told.lines[:1] == ([] if cause == "overflow" else ["step 4 skipped: its gradient is not finite"])


def test_a_rollback_keeps_the_position_in_the_data_and_is_saved_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told, seen = Told(), {}
    trainer = a_trainer(tmp_path, told)
    trainer.state = TrainState(8, 9, skipped=3, recently_skipped=[5, 7], rollbacks=[], corrupt={"1": "crop"})
    checkpoint = SimpleNamespace(step=4, folder=Path("step-4"))
    monkeypatch.setattr(sharded, "find_newest", lambda *_, before: seen.update(before=before) or checkpoint)
    monkeypatch.setattr(sharded, "restore", lambda *parts: seen.update(restored=parts))
    record = ValidationRecord(2, Best(2, "loss", 0.5), protocol="other")
    monkeypatch.setattr(module, "load_validation_record", lambda *_: record)
    trainer.timer, trainer.save = Mock(), lambda request: seen.update(saved=(request, trainer.state))
    assert list(trainer.rollback(LOSS, STOP)) == [9]  # the batch at the kept position
    expected = TrainState(4, 9, 3, [], [9], {"1": "crop"}, record)
    assert trainer.state == expected
    assert seen == {"before": 5, "restored": (trainer.engine, trainer.rank, checkpoint), "saved": (STOP, expected)}
    rollback = {"kind": "rollback", "step": 4, "from_step": 8, "data_step": 9, "path": "step-4"}
    assert told.events == [rollback]
    assert told.lines[0].startswith("rollback from step 8 to step-4 after 2 skipped steps")
    trainer.timer.take.assert_called_once_with()  # the skipped steps belong to no row
    trainer.memory_copies.discard.assert_called_once_with()
    trainer.checkpointer.wait.assert_called_once_with()
    assert trainer.former_record == record

    trainer.state = replace(expected, step=8, rollbacks=[], recently_skipped=[5])
    trainer.validator = Mock(stops_early=lambda record: False)  # an attempt with other held-out videos
    trainer.rollback(LOSS, STOP)
    assert trainer.state.validation == trainer.former_record == record  # both of protocol "other"
    trainer.state = replace(expected, rollbacks=[], recently_skipped=[5], validation=ValidationRecord(protocol="mine"))
    trainer.rollback(LOSS, STOP)
    assert trainer.state.validation == ValidationRecord(protocol="mine")


@pytest.mark.parametrize(("rollbacks", "rank"), [([], 0), ([7], 1)])
def test_a_run_without_a_checkpoint_or_with_a_recent_rollback_ends(
    rollbacks: list[int], rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = a_trainer(tmp_path, Told(), rank)
    trainer.state = TrainState(8, 9, recently_skipped=[5, 7], rollbacks=rollbacks)
    found = SimpleNamespace(step=4, folder=Path("step-4")) if rollbacks else None
    monkeypatch.setattr(sharded, "find_newest", lambda *_, before: found)
    with pytest.raises(UserError, match="not finite") as error:
        trainer.rollback(LOSS, NOTHING)
    assert error.value.already_reported == (rank == 1)


@pytest.mark.parametrize(("request_", "step"), [(NOTHING, 4), (STOP, 4), (NOTHING, 9)])
def test_a_save_waits_for_the_write_only_at_the_end(
    request_: Request, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    trainer.state.step, trainer.timer, trainer.save_interval = step, Mock(), Mock()
    waits = [None, replace(SAVED, step=step)]
    trainer.checkpointer.wait.side_effect = lambda: waits.pop(0)
    monkeypatch.setattr(module, "gather_objects", lambda mine: [mine])
    trainer.save(request_)
    ends = request_.end is not None or step == 9
    assert len(waits) == (0 if ends else 1)
    engine, saved_step, metadata, start, waited = trainer.checkpointer.start.call_args.args
    assert (engine, saved_step, metadata["trainer"]["step"]) == (trainer.engine, step, step)
    assert 0 <= waited < start
    assert [row["kind"] for row in told.events] == ["preemption"] * (request_.end is not None) + ["checkpoint"] * ends
    if ends:
        assert told.events[-1]["blocking"] == told.events[-1]["seconds"]
    trainer.save_interval.add.assert_not_called()
    trainer.save_interval.begin.assert_called_once_with(step)
    trainer.stop_requests.clear.assert_called_once_with(request_)
    assert [call.args[0] for call in trainer.timer.enter.call_args_list] == [Phase.CHECKPOINT, Phase.OTHER]


def test_a_checkpoint_and_a_memory_copy_say_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = a_trainer(tmp_path, Told())
    monkeypatch.setattr(module, "gather_objects", lambda mine: [mine])
    content = trainer.checkpoint_metadata()
    assert content == {
        "trainer": content["trainer"],
        "loader": {"at": 6},  # the position in the data, not the step
        "config": trainer.config.model_dump(mode="json"),
        "task": {"class_names": ["a"]},
        "writer": {"attempt": "a", "world": 1, "zero_stage": 2, "precision": "bf16", "torch": torch.__version__},
    }
    assert (content["trainer"]["step"], content["trainer"]["data_step"]) == (4, 6)
    trainer.timer = Mock()
    trainer.copy_to_memory()
    trainer.memory_copies.start.assert_called_once_with(trainer.engine, content, 4, 6, "step-3")
    assert [call.args[0] for call in trainer.timer.enter.call_args_list] == [Phase.MEMORY_COPY, Phase.OTHER]

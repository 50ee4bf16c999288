"""What a trainer does after each step, and where the host waits for the GPU.

The host waits only to decide whether a step is applied, and for rows of metrics.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from motionmae.distributed.stop_requests import Request
from motionmae.runs.best_checkpoint import Best
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Phase, read_rows
from motionmae.training import trainer as module
from motionmae.training.nonfinite import SkippedStep
from motionmae.training.state import TrainState
from motionmae.training.trainer import Trainer
from motionmae.training.validation.validator import Validated
from motionmae.training.validation_record import ValidationRecord
from tests.training.launch import run_ranks
from tests.training.replacements import NOTHING, STOP, Told, a_trainer
from tests.training.run_workers import pretrain_and_count_waits, pretrain_without_memory
from tests.training.shards import STEPS, make_shards, tiny_run

ROWS = 3
LOSS = SkippedStep("loss", [1], [17, 42])


def test_clips_of_a_step_count_each_repetition_of_a_video(tmp_path: Path):
    trainer = a_trainer(tmp_path, Told(), data={"repeated_sampling": 2})
    assert trainer.metrics.clips_per_step == 12  # 6 videos, twice
    assert trainer.total_steps == 9


def test_a_run_is_done_at_its_last_step_or_after_early_stopping(tmp_path: Path):
    trainer = a_trainer(tmp_path, Told())
    found = []
    for trainer.state.step in (3, 4, 8, 9):
        found.append((trainer.done, trainer.is_due(2)))
    assert found == [(False, False), (False, True), (False, True), (True, True)]
    trainer.state.step, trainer.validator = 3, Mock(stops_early=lambda record: record.waited == 2)
    trainer.state.validation = ValidationRecord(waited=2)
    assert (trainer.done, trainer.is_due(2)) == (True, True)
    trainer.state.validation = ValidationRecord(waited=1)
    assert not trainer.done


def test_a_row_has_the_figures_of_a_validation_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    monkeypatch.setattr(module, "gather_objects", lambda mine: [mine])
    trainer.metrics = Mock(row=lambda state, result: {"step": state.step})
    trainer.unlogged_figures = {"val_top1": 50.0}
    trainer.log_step(None)
    trainer.memory_copies.newest = 3
    trainer.log_step(None)
    rows = [{"step": 4, "memory_copy_step": 0, "val_top1": 50.0}, {"step": 4, "memory_copy_step": 3}]
    assert told.calls == [("on_log", row) for row in rows]
    assert [{key: row[key] for key in rows[n]} for n, row in enumerate(told.rows)] == rows


def test_an_owed_validation_comes_before_the_first_step_and_is_saved(tmp_path: Path):
    trainer = a_trainer(tmp_path, Told())
    trainer.save, trainer.validate = Mock(), Mock(return_value=Validated(ValidationRecord(), STOP))
    assert trainer.validate_owed() == NOTHING
    trainer.state.validation = ValidationRecord(owed=True)
    assert trainer.validate_owed() == NOTHING  # this attempt has no held-out videos
    assert not trainer.state.validation.owed
    trainer.save.assert_not_called()
    trainer.state.validation, trainer.validator = ValidationRecord(owed=True), Mock()
    assert trainer.validate_owed() == STOP
    assert not trainer.state.validation.owed
    trainer.save.assert_called_once_with(STOP)
    trainer.validate.assert_called_once_with(trainer.validator, NOTHING)


def test_a_validation_keeps_the_record_before_it_and_its_time_is_its_own(tmp_path: Path):
    told = Told()
    trainer = a_trainer(tmp_path, told)
    before, after = ValidationRecord(2, Best(2, "top1", 50.0)), ValidationRecord(4, Best(2, "top1", 50.0), waited=1)
    trainer.state.validation, trainer.timer = before, Mock()
    answer = Validated(after, STOP, {"val_top1": 40.0})
    validator = Mock(run=Mock(return_value=answer), stops_early=lambda record: record.waited >= 1)
    trainer.validator = validator
    assert trainer.validate(validator, NOTHING) is answer
    validator.run.assert_called_once_with(4, before, NOTHING, trainer.stop_requests)
    assert (trainer.former_record, trainer.state.validation) == (before, after)
    assert trainer.unlogged_figures == {"val_top1": 40.0}
    assert [call.args[0] for call in trainer.timer.enter.call_args_list] == [Phase.VALIDATION, Phase.OTHER]
    trainer.checkpointer.wait.assert_called_once_with()
    assert told.lines == ["early stopping at step 4: no validation exceeded top1 50 of step 2"]


@pytest.mark.parametrize(("step", "due", "validates"), [(4, True, True), (4, False, False), (9, False, True)])
def test_validations_are_due_at_their_steps_and_at_the_last(step: int, due: bool, validates: bool, tmp_path: Path):
    trainer = a_trainer(tmp_path, Told())
    trainer.state.step, trainer.validate = step, Mock()
    trainer.validator = Mock(is_due=lambda step: due, stops_early=lambda record: False)
    found = trainer.validate_if_due(STOP)
    assert trainer.validate.called == validates
    assert validates or found == Validated(trainer.state.validation, STOP)


class Fit:
    """What :meth:`Trainer.fit` does from step 4 on; a step, a save and so on only say that they were called."""

    def __init__(self, trainer: Any, requests: dict[int, Request], best: int = 0) -> None:
        self.trainer, self.requests, self.best = trainer, requests, best
        self.done: list[str] = []
        trainer.validate_owed = lambda: NOTHING
        trainer.train_step = self.train_step
        trainer.stop_requests.finish_sync = lambda: requests.get(trainer.state.step, NOTHING)
        trainer.validate_if_due = self.validate_if_due
        for name in ("log_step", "copy_to_memory", "save", "end"):
            setattr(trainer, name, self.note(name))

    def train_step(self, batches: Any) -> None:
        self.trainer.state.step += 1

    def validate_if_due(self, request: Request) -> Validated:
        is_best = self.trainer.state.step == self.best
        return Validated(ValidationRecord(), request, is_best=is_best)

    def note(self, name: str) -> Callable[..., None]:
        def call(value: Any = None) -> None:
            self.done.append(f"{name} {getattr(value, 'value', self.trainer.state.step)}")

        return call


def test_what_a_run_does_after_each_step(tmp_path: Path):
    """From step 4: rows at multiples of 3, saves of 5, copies to memory of 2; the last step is 9."""
    trainer = a_trainer(tmp_path, told := Told(), log={"every_steps": 3}, checkpoint={"every_steps": 5})
    trainer.memory_copies.is_due = lambda step: step % 2 == 0
    fit = Fit(trainer, {7: Request(None, save=True)}, best=6)
    assert trainer.fit() is EndReason.FINISHED
    assert fit.done == ["save 5", "log_step 6", "save 6", "save 7", "copy_to_memory 8", "log_step 9", "save 9",
                        "end finished"]  # fmt: skip
    (first,) = told.events
    assert (first["kind"], first["step"]) == ("first_step", 5)
    assert 0 <= first["seconds"] < first["since_process_start"]
    assert told.calls == [("on_train_start",)]
    assert trainer.stop_requests.begin_sync.call_count == 5
    assert trainer.checkpointer.poll.call_count == trainer.memory_copies.poll.call_count == 5
    assert trainer.timer.steps == 5


@pytest.mark.parametrize(
    ("step", "owed", "reason"),
    [(6, False, "preempted"), (9, False, "finished"), (9, True, "preempted")],  # a request at the last step
)
def test_a_request_to_stop_logs_and_saves_the_step_and_ends(step: int, owed: bool, reason: str, tmp_path: Path):
    trainer = a_trainer(tmp_path, Told(), log={"every_steps": 100}, checkpoint={"every_steps": 100})
    trainer.memory_copies.is_due = lambda step: True
    trainer.state.validation = ValidationRecord(owed=owed)
    trainer.state.step = step - 1
    fit = Fit(trainer, {step: STOP})
    assert trainer.fit() == reason
    assert fit.done == [f"log_step {step}", f"save {step}", f"end {reason}"]


def test_unlogged_figures_make_a_row(tmp_path: Path):
    trainer = a_trainer(tmp_path, Told(), log={"every_steps": 100}, checkpoint={"every_steps": 100})
    trainer.unlogged_figures, trainer.state.step = {"val_loss": 1.0}, 7
    fit = Fit(trainer, {})
    trainer.fit()
    assert fit.done[0] == "log_step 8"


def test_a_skipped_step_is_neither_logged_nor_saved_once_too_many_were(tmp_path: Path):
    trainer = a_trainer(tmp_path, Told(), log={"every_steps": 1}, checkpoint={"every_steps": 1})
    fit = Fit(trainer, {})
    trainer.engine.applied = False
    skipped = {5: None, 6: LOSS}
    trainer.count_skipped = lambda result: skipped.get(trainer.state.step)
    trainer.rollback = lambda skipped, request: setattr(trainer.state, "step", 8) or iter([])
    trainer.fit()
    assert fit.done == ["log_step 5", "save 5", "log_step 9", "save 9", "end finished"]


def test_the_host_waits_in_the_optimizer_and_at_rows_of_metrics(tmp_path: Path):
    shards = make_shards(tmp_path / "shards")
    log = {"every_steps": STEPS // ROWS}
    cases = [(0, True, 0.0), (0, True, 0.9), (1, True, 0.0), (1, False, 0.0), (2, True, 0.0)]
    runs = [
        tiny_run(
            shards,
            tmp_path / f"{zero}{overlap}{decay}",
            engine={"zero_stage": zero, "overlap_comm": overlap},
            optim={"ema_decay": decay},
            log=log,
        )
        for zero, overlap, decay in cases
    ]
    answers = run_ranks(2, pretrain_and_count_waits, runs)[0]
    for (zero, overlap, decay), found in zip(cases, answers, strict=True):
        in_step = {where: count for (part, where), count in found.items() if part == "train_step"}
        if zero == 0:  # the flag is read once, after the update is on its way; the average of the weights needs it
            assert in_step == ({"applied": STEPS} if decay else {}), found
            assert found.get(("applied", "applied"), 0) == (0 if decay else STEPS)
        else:  # each step reads whether the gradient is finite, for each parameter group
            assert in_step.pop("step") in (STEPS, 2 * STEPS, 3 * STEPS), found
            # with overlap, DeepSpeed waits for the whole device once, at the end of the backward pass
            assert in_step == ({"device": STEPS} if overlap else {}), found
        assert found["log_step", "row"] % ROWS == 0
        # the request of all ranks consists of two numbers in host memory; the run before frees its engine at the start
        parts = {"train_step", "applied", "finish_sync", "log_step", "save", "on_train_start"}
        assert {part for part, _ in found} <= parts, found


def test_ranks_and_steps_draw_different_numbers_and_a_second_run_the_same():
    """Drop path and mixup draw from the generators of torch and numpy."""

    def draw(rank: int, step: int, seed: int = 0) -> tuple[float, float]:
        fake = SimpleNamespace(
            timer=Mock(),
            watchdog=Mock(),
            schedule=Mock(),
            config=SimpleNamespace(seed=seed),
            rank=SimpleNamespace(rank=rank),
            state=TrainState(step=step, data_step=7),
            forward_backward=lambda batches: (float(torch.rand(1)), float(np.random.rand())),
        )
        result: Any = Trainer.train_step(fake, iter([]))  # type: ignore[arg-type]
        assert (fake.state.step, fake.state.data_step) == (step + 1, 8)
        fake.schedule.step_update.assert_called_once_with(step)  # the rate of the step that begins
        fake.watchdog.step.assert_called_once_with(step + 1)  # steps are counted from 1 in messages
        return result

    drawn = [draw(0, 0), draw(1, 0), draw(2, 0), draw(0, 1), draw(1, 1), draw(0, 0, seed=1)]
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == len(drawn)
    assert drawn[:2] == [draw(0, 0), draw(1, 0)]


def test_lack_of_memory_is_one_sentence_with_a_micro_batch(tmp_path: Path):
    config = tiny_run(make_shards(tmp_path / "shards"), tmp_path / "runs")
    ((kind, message),) = run_ranks(1, pretrain_without_memory, config)
    assert kind == "OutOfMemoryError"  # the exporter counts this name
    assert "rank 0 ran out of memory" in message
    assert "with engine.micro_batch_size=3" in message
    assert "set engine.micro_batch_size=2" in message  # the largest below that divides the batch of 6
    stop = [row for row in read_rows(config.run_folder / "events.jsonl") if row["kind"] == Kind.STOP][-1]
    assert stop["reason"] == "user_error"
    assert stop["error"].startswith("OutOfMemoryError: ")


def test_a_step_adds_the_means_of_its_micro_batches_and_times_each_part(tmp_path: Path):
    """Two micro-batches; the first of the task's losses is minimised."""
    trainer = a_trainer(tmp_path, Told())
    trainer.task.losses = ("loss", "loss_time")
    order: list[Any] = []
    trainer.timer = Mock(enter=lambda phase: order.append(phase.value))
    trainer.engine.accumulation = 2
    trainer.engine.backward = lambda loss: order.append(("backward", float(loss.detach())))
    trainer.engine.step = lambda: order.append("step")
    trainer.task.forward = lambda engine, batch: (batch.loss, 10 * batch.loss) if engine is trainer.engine else None
    losses = [torch.tensor(value, dtype=torch.bfloat16, requires_grad=True) for value in (1.0, 2.0, 7.0)]
    batches = iter([SimpleNamespace(loss=loss, samples=torch.tensor([n])) for n, loss in enumerate(losses)])
    result = trainer.forward_backward(batches)
    assert result.losses.tolist() == [1.5, 15.0]
    assert (result.losses.dtype, result.losses.requires_grad) == (torch.float32, False)
    assert [each.tolist() for each in result.samples] == [[0], [1]]
    parts = [["data_wait", "forward", "backward", ("backward", value), "optimizer", "step"] for value in (1.0, 2.0)]
    assert order == [*parts[0], *parts[1], "other"]
    assert next(batches).loss is losses[2]


def test_the_parts_of_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: dict[str, Any] = {}
    for name in ("AsyncCheckpointer", "SaveInterval", "StopRequests", "StepMetrics"):
        monkeypatch.setattr(module, name, lambda *words, name=name: made.update({name: words}))
    trainer = a_trainer(tmp_path, Told(), checkpoint={"every_steps": 7})
    trainer.memory_copies.nodes = ["n1", "n2", "n1"]
    trainer.__post_init__()
    assert made["AsyncCheckpointer"] == (
        trainer.store, trainer.rank, trainer.lease, trainer.config.checkpoint, trainer.watchdog,
    )  # fmt: skip
    assert made["SaveInterval"][:4] == (7, 4, 2, trainer.rank)
    assert made["SaveInterval"][4].folder.path == trainer.folder.path
    assert made["StopRequests"] == (trainer.signals, trainer.folder.path, True)
    assert trainer.store.folder == trainer.folder.checkpoints
    assert (trainer.failed_saves, trainer.unlogged_figures) == (0, {})
    assert trainer.former_record is trainer.state.validation

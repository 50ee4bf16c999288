"""The host waits for the GPU only to decide whether a step is applied, and for rows of metrics."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch

from motionmae.runs.events import Kind, read_rows
from motionmae.training.state import TrainState
from motionmae.training.trainer import Trainer
from tests.training.launch import run_ranks
from tests.training.run_workers import pretrain_and_count_waits, pretrain_without_memory
from tests.training.shards import STEPS, make_shards, tiny_run

ROWS = 3


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

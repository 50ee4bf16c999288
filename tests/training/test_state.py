import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from motionmae.config import OptimConfig
from motionmae.runs.best_checkpoint import Best
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.training import state
from motionmae.training.state import build_schedule, load_validation_record, seed_step
from motionmae.training.validation_record import ValidationRecord

OPTIM = OptimConfig(global_batch_size=1024, epochs=100, warmup_epochs=10, base_lr=1.5e-4, min_lr=1e-6)
STEPS_PER_EPOCH = 7
PEAK = 1.5e-4 * 1024 / 256


def rates(optim: OptimConfig, steps: list[int], steps_per_epoch: int = STEPS_PER_EPOCH) -> list[float]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups, lr=123.0)
    schedule = build_schedule(optimizer, optim, steps_per_epoch)
    found = []
    for step in steps:
        schedule.step_update(step)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == second
        found.append(first)
    return found


def test_warm_up_is_linear_from_zero_to_the_peak():
    assert rates(OPTIM, [0, 1, 35, 70]) == pytest.approx([0, PEAK / 70, PEAK / 2, PEAK], abs=1e-12)


def test_cosine_falls_from_the_peak_to_the_floor():
    warmup, total = 70, 700
    for step in (70, 200, 385, 699):
        share = (step - warmup) / (total - warmup)
        expected = 1e-6 + (PEAK - 1e-6) * (1 + math.cos(math.pi * share)) / 2
        assert rates(OPTIM, [step]) == pytest.approx([expected], rel=1e-9)
    assert rates(OPTIM, [700, 701, 5000]) == pytest.approx([1e-6] * 3)


def test_rate_depends_on_the_step_alone():
    everything = rates(OPTIM, list(range(700)))
    assert rates(OPTIM, [600, 3, 69, 350]) == [everything[step] for step in (600, 3, 69, 350)]


def test_no_warm_up_starts_at_the_peak_and_fractions_of_an_epoch_count():
    assert rates(OPTIM.model_copy(update={"warmup_epochs": 0}), [0]) == pytest.approx([PEAK])
    assert rates(OPTIM.model_copy(update={"warmup_epochs": 0.5}), [2, 4]) == pytest.approx([PEAK / 2, PEAK], rel=1e-3)


@pytest.mark.parametrize(
    ("epochs", "warmup", "per_epoch", "expected"),
    [
        (1, 0.9, 4, [0, PEAK / 3, 2 * PEAK / 3, PEAK]),  # 3.6 steps of 4
        (1, 0.9, 1, [PEAK]),
        (1, 0.5, 1, [PEAK]),
        (2, 1.9, 1, [0, PEAK]),
    ],
)
def test_a_warm_up_that_rounds_to_all_steps_leaves_the_last(
    epochs: int, warmup: float, per_epoch: int, expected: list[float]
):
    optim = OPTIM.model_copy(update={"epochs": epochs, "warmup_epochs": warmup})
    assert rates(optim, list(range(epochs * per_epoch)), per_epoch) == pytest.approx(expected)


def test_random_numbers_are_a_function_of_seed_step_and_rank():
    draws = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]:
        seed_step(*key)
        draw = torch.rand(4).tolist()
        assert draws.setdefault(key, draw) == draw
    assert len({tuple(draw) for draw in draws.values()}) == 4


def test_the_record_of_a_checkpoint_is_read_without_a_best_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state, "run_on_rank_zero", lambda rank, action: action())
    store = CheckpointStore(tmp_path)
    for step, best in ((2, None), (4, 2), (6, 3)):
        record = ValidationRecord(step, Best(best, "top1", 50.0) if best else None, waited=1, protocol="p")
        trainer = {"data_step": step, "validation": asdict(record)}
        store.commit(store.begin(step), step, {"trainer": trainer}, [])
    nobody: Any = None
    found = [load_validation_record(checkpoint, store, nobody) for checkpoint in store.complete()]
    assert found == [
        ValidationRecord(2, waited=1, protocol="p"),
        ValidationRecord(4, Best(2, "top1", 50.0), 1, protocol="p"),
        ValidationRecord(6, protocol="p"),  # there is no checkpoint of step 3
    ]


def test_both_generators_are_seeded():
    """Drop path draws from torch, and mixup from numpy."""
    drawn = []
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]:
        seed_step(*key)
        drawn.append((float(torch.rand(1)), float(np.random.rand())))
    assert drawn[0] == drawn[4]
    assert len({one for one, _ in drawn}) == len({other for _, other in drawn}) == 4

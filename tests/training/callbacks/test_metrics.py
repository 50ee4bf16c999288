"""Every figure of a metrics row, worked by hand for the second of two ranks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from motionmae.distributed.context import DistributedContext
from motionmae.runs.events import Phase
from motionmae.training.callbacks import metrics
from motionmae.training.callbacks.metrics import StepMetrics, StepResult
from motionmae.training.state import TrainState

SECONDS = {Phase.DATA_WAIT: 1.0, Phase.FORWARD: 2.0, Phase.BACKWARD: 3.0, Phase.OPTIMIZER: 0.5, Phase.OTHER: 1.5}
OUTSIDE = {Phase.CHECKPOINT: 16.0, Phase.MEMORY_COPY: 8.0, Phase.VALIDATION: 4.0}


class TwoSteps:
    """A timer after two steps."""

    steps, slowest_step = 2, 5.5

    def take(self) -> dict[Phase, float]:
        self.steps, self.slowest_step = 0, 0.0
        return dict.fromkeys(Phase, 0.0) | SECONDS | OUTSIDE


def row(monkeypatch: pytest.MonkeyPatch, **sources: Any) -> dict[str, Any]:
    def all_reduce(shared: Tensor) -> None:
        assert shared.tolist() == [1.0, 0.25, 0.0, 1.5]  # own losses; own seconds of a step until the forward pass ends
        shared += torch.tensor([3.0, 0.75, 6.0, 0.0])  # those of rank 0

    monkeypatch.setattr(metrics.dist, "all_reduce", all_reduce)
    rank = DistributedContext(rank=1, local_rank=1, world=2, device=torch.device("cpu"))
    engine = SimpleNamespace(learning_rate=0.125, grad_norm=7.0)
    mixture = SimpleNamespace(is_mixture=bool(sources), names=("a", "b"), sizes=(4, 10))
    loader = SimpleNamespace(steps_per_epoch=4, ready=3, sources=mixture, drawn=lambda step: {"a": step, "b": 25})
    state = TrainState(step=12, data_step=14, skipped=2, corrupt={"1": "x", "2": "y", "5": "z"})
    source: Any = StepMetrics(("loss", "loss_time"), 24, rank, engine, loader, TwoSteps())  # type: ignore[arg-type]
    return source.row(state, StepResult(torch.tensor([1.0, 0.25]), []))


def test_every_figure_of_a_row(monkeypatch: pytest.MonkeyPatch):
    phases = {f"{phase.value}_seconds": 0.0 for phase in Phase}
    phases |= {f"{phase.value}_seconds": seconds / 2 for phase, seconds in (SECONDS | OUTSIDE).items()}
    assert row(monkeypatch) == {
        "step": 12,
        "data_step": 14,
        "epoch": 3.5,
        "loss": 2.0,
        "loss_time": 0.5,
        "lr": 0.125,
        "grad_norm": 7.0,
        "skipped_steps": 2,
        "corrupt_samples": 3,
        "loader_ready": 3,
        "steps": 2,
        "step_seconds": 4.0,  # without saves, memory copies and validations
        "clips_per_second": 6.0,  # 24 clips in 4 seconds
        "step_seconds_max": 5.5,
        **phases,
        "straggler_score": 1.0,  # torch's median of two is the smaller
        "slowest_rank": 0,
        "slowest_score": 4.0,
    }


def test_samples_and_passes_of_a_mixture(monkeypatch: pytest.MonkeyPatch):
    found = row(monkeypatch, mixture=True)
    own = {
        key: value for key, value in found.items() if key.startswith((metrics.SOURCE_SAMPLES, metrics.SOURCE_PASSES))
    }
    assert sorted(own.values()) == [2.5, 3.5, 14, 25]  # 25 of 10, 14 of 4
    assert own[f"{metrics.SOURCE_PASSES}a"] == 3.5
    assert own[f"{metrics.SOURCE_SAMPLES}b"] == 25

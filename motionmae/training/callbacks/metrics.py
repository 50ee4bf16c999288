"""Rows of metrics.jsonl: losses, counters, times, and stragglers of a step, over all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from motionmae.data.loader import ClipLoader
from motionmae.distributed.context import DistributedContext
from motionmae.engine.deepspeed_engine import Engine
from motionmae.runs.events import OUTSIDE_STEPS, SOURCE_PASSES, SOURCE_SAMPLES, Row
from motionmae.training.state import TrainState
from motionmae.training.step_timer import StepTimer


@dataclass(frozen=True)
class StepResult:
    """Result of one optimiser step on this rank."""

    losses: Tensor  # means of the task's losses over the micro-batches; the first is minimised
    samples: list[Tensor]  # (b,) sample IDs of each micro-batch


@dataclass(frozen=True)
class StepMetrics:
    """Source of the rows of metrics.jsonl. Add a new scalar here and in monitoring/metric_definitions.py."""

    loss_names: Sequence[str]
    clips_per_step: int  # clips over all ranks, including repeated clips of a video
    rank: DistributedContext
    engine: Engine
    loader: ClipLoader
    timer: StepTimer

    def row(self, state: TrainState, result: StepResult) -> Row:
        """Compute the row of the last step. All ranks must call this."""
        times = self.times()
        names, rank, world = self.loss_names, self.rank.rank, self.rank.world
        shared = torch.zeros(len(names) + world, device=self.rank.device)  # one message for losses and times
        shared[: len(names)] = result.losses
        shared[len(names) + rank] = times["data_wait_seconds"] + times["forward_seconds"]
        dist.all_reduce(shared)
        losses, own_seconds = shared.split([len(names), world])
        return {
            "step": state.step,
            "data_step": state.data_step,
            "epoch": state.data_step / self.loader.steps_per_epoch,
            **dict(zip(names, (losses / world).tolist(), strict=True)),
            "lr": self.engine.learning_rate,
            "grad_norm": self.engine.grad_norm,
            "skipped_steps": state.skipped,
            "corrupt_samples": len(state.corrupt),
            "loader_ready": self.loader.ready,
            **self.source_counts(state.data_step),
            **times,
            **straggler_scores(own_seconds, rank),
        }

    def source_counts(self, data_step: int) -> Row:
        """Return the samples drawn from each source of a mixture since the run began, and the passes through it."""
        sources = self.loader.sources
        if not sources.is_mixture:
            return {}
        drawn = self.loader.drawn(data_step)
        sizes = dict(zip(sources.names, sources.sizes, strict=True))
        samples = {f"{SOURCE_SAMPLES}{name}": count for name, count in drawn.items()}
        return samples | {f"{SOURCE_PASSES}{name}": count / sizes[name] for name, count in drawn.items()}

    def times(self) -> Row:
        """Compute this rank's mean times of a step since the last row, without saves, memory copies and validations."""
        steps, slowest = self.timer.steps, self.timer.slowest_step
        phases = {phase: seconds / steps for phase, seconds in self.timer.take().items()}
        seconds = sum(seconds for phase, seconds in phases.items() if phase not in OUTSIDE_STEPS)
        return {
            "steps": steps,
            "clips_per_second": self.clips_per_step / seconds,
            "step_seconds": seconds,
            "step_seconds_max": slowest,
            **{f"{phase.value}_seconds": value for phase, value in phases.items()},
        }


def straggler_scores(own_seconds: Tensor, rank: int) -> Row:
    """Divide each rank's own time in a step by the median; return this rank's score and the slowest rank's.

    ``own_seconds`` (world,) are the seconds of a step until the end of the forward pass. From then on, ranks wait for
    each other.
    """
    scores = own_seconds / own_seconds.median().clamp(min=1e-9)
    slowest = int(scores.argmax())
    return {"straggler_score": float(scores[rank]), "slowest_rank": slowest, "slowest_score": float(scores[slowest])}

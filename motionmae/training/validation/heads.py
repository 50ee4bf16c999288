"""Losses and explained variance of the decoder heads on held-out clips, the same for every number of ranks.

The clips are the first ones of the stream that training would read of the held-out shards: cropped and masked as in
training, by the run's seed. A small set therefore gives several crops of each video. Forward passes take CLIPS clips
and never depend on the ranks; sums are in float64 and in the order of the clips.
"""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.config.data import Shards
from motionmae.data.loader import Batch, ClipLoader
from motionmae.distributed.context import DistributedContext
from motionmae.models.motionmae import Losses, masked_targets
from motionmae.models.targets import loss_of
from motionmae.training.validation.measure import FAILURES, Measured, UnreadableShardsError
from motionmae.training.validation.rounds import Pause, in_rounds

CLIPS = 8
"""Clips of a forward pass."""

Sums = dict[str, Tensor]
"""Sums over the clips of one forward pass, by head."""


@dataclass(frozen=True)
class HeldOutClips:
    """Held-out clips of a pre-training, divided into groups of CLIPS."""

    config: Config
    shards: Shards
    clips: int  # number of clips
    device: torch.device

    @property
    def groups(self) -> int:
        return math.ceil(self.clips / CLIPS)

    def read(self, first: int = 0, every: int = 1) -> Generator[Batch, None, None]:
        """Yield groups ``first``, ``first + every``, ... on the device.

        Raises:
            UserError: the shards cannot be read, or too many samples are corrupt.
        """
        data = self.config.data
        beton = data.beton if self.shards == data.shards else ""
        update = {"shards": self.shards, "beton": beton, "repeated_sampling": 1, "workers": 0}
        data = data.model_copy(update=update)
        groups = [range(g * CLIPS, min((g + 1) * CLIPS, self.clips)) for g in range(first, self.groups, every)]
        flow = self.config.target.needs_flow
        with ClipLoader(
            data, self.config.clip, seed=self.config.seed, batch=1, micro_batch_size=1, flow=flow
        ) as loader:
            batches = loader.micro_batches(number for group in groups for number in group)
            for group in groups:
                yield _join(list(islice(batches, len(group)))).to(self.device)

    def sum_targets(self, batch: Batch) -> Sums:
        """Return the sum of each head's target over clips and masked cubes, (L + 1,), followed by their number."""
        sums = {}
        for head, target in self._targets(batch).items():
            number = torch.tensor([target.shape[0] * target.shape[1]], dtype=torch.float64)
            sums[head] = torch.cat([target.double().sum((0, 1)).cpu(), number])
        return sums

    def sum_baselines(self, batch: Batch, means: Sums) -> Sums:
        """Return the loss of predicting each head's mean target, (L,), times the number of clips."""
        kind = self.config.target.loss
        targets = self._targets(batch)
        mean = {head: means[head].float().to(self.device).expand_as(target) for head, target in targets.items()}
        return {
            head: loss_of(mean[head], target, kind).double().cpu() * len(batch.seeds)
            for head, target in targets.items()
        }

    def sum_losses(self, batch: Batch, forward: Callable[..., Losses]) -> Sums:
        """Return the losses of the heads and the total loss, each times the number of clips."""
        losses = forward(batch.clips, batch.seeds, batch.flow)
        return {name: value.double().cpu() * len(batch.seeds) for name, value in losses._asdict().items()}

    def _targets(self, batch: Batch) -> dict[str, Tensor]:
        return masked_targets(self.config, batch.clips, batch.seeds, batch.flow)


def mean_targets(sums: list[Sums]) -> Sums:
    """Return the mean target (L,) of each head from :meth:`HeldOutClips.sum_targets` of all groups in order."""
    totals = add(sums)
    return {head: total[:-1] / total[-1] for head, total in totals.items()}


def add(sums: list[Sums]) -> Sums:
    """Add the sums of all groups in order."""
    return {head: torch.stack([each[head] for each in sums]).sum(0) for head in sums[0]}


def measure_baselines(held_out: HeldOutClips) -> dict[str, float]:
    """Return the loss of predicting the mean target, by head, in one process."""
    means = mean_targets([held_out.sum_targets(batch) for batch in held_out.read()])
    sums = add([held_out.sum_baselines(batch, means) for batch in held_out.read()])
    return {head: float(total) / held_out.clips for head, total in sums.items()}


def _join(batches: list[Batch]) -> Batch:
    flows = [batch.flow for batch in batches if batch.flow is not None]
    clips, labels, seeds, samples = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("clips", "labels", "seeds", "samples")
    )
    return Batch(clips, labels, seeds, samples, torch.cat(flows) if flows else None)


class HeadLosses:
    """Measurement of pre-training: loss and explained variance of each head on held-out clips.

    The loss of predicting the mean is measured once in an attempt.
    """

    def __init__(self, config: Config, rank: DistributedContext, *, sharded: bool) -> None:
        validation = config.validation
        self._held_out = HeldOutClips(config, validation.shards, validation.heldout_clips, rank.device)
        self._rank, self._sharded = rank, sharded
        self._baselines: dict[str, float] = {}

    def measure(self, model: nn.Module, pause: Pause) -> Measured:
        held_out = self._held_out
        if not self._baselines:
            means = mean_targets(self._sums(held_out.sum_targets, pause))
            baselines = add(self._sums(lambda batch: held_out.sum_baselines(batch, means), pause))
            self._baselines = {head: float(total) / held_out.clips for head, total in baselines.items()}
        sums = add(self._sums(lambda batch: held_out.sum_losses(batch, model), pause, lambda: self._idle(model)))
        losses = {name: float(total) / held_out.clips for name, total in sums.items()}
        figures = {"loss": losses["total"]}
        for head, baseline in self._baselines.items():
            figures |= {f"loss_{head}": losses[head], f"explained_{head}": 1 - losses[head] / baseline}
        return Measured(figures, held_out.clips)

    def _sums(
        self, compute: Callable[[Batch], Sums], pause: Pause, idle: Callable[[], None] = lambda: None
    ) -> list[Sums]:
        """Return the sums of all groups, from all ranks."""
        found = in_rounds(self._held_out.groups, self._own(compute, idle), self._rank, pause, idle)
        if failed := next((sums for sums in found if isinstance(sums, str)), ""):
            raise UnreadableShardsError(failed)
        return [sums for sums in found if not isinstance(sums, str)]

    def _own(self, compute: Callable[[Batch], Sums], idle: Callable[[], None]) -> Generator[Sums | str, None, None]:
        """Yield this rank's sums, or the reason why the clips cannot be read, as often as this rank has groups."""
        rank, world, problem = self._rank.rank, self._rank.world, ""
        with closing(self._held_out.read(rank, world)) as batches:
            for _ in range(rank, self._held_out.groups, world):
                batch = None
                if not problem:
                    try:
                        batch = next(batches)
                    except FAILURES as error:
                        problem = str(error)
                if batch is None:
                    idle()
                    yield problem
                else:
                    yield compute(batch)

    def _idle(self, model: nn.Module) -> None:
        if self._sharded:
            config, device = self._held_out.config, self._rank.device
            clips = torch.zeros(1, config.clip.frames, config.clip.size, config.clip.size, 3, dtype=torch.uint8)
            flow = clips[..., :2].half() if config.target.needs_flow else None
            seeds = torch.zeros(1, dtype=torch.int64)
            model(clips.to(device), seeds.to(device), None if flow is None else flow.to(device))

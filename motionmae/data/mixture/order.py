"""Order of the samples of a run, as a pure function of (seed, position), for one folder of shards or a mixture.

One folder has the order of :class:`motionmae.data.sampler.EpochSampler` in each epoch.

In a mixture, every source is read in its own passes, one after the other without a gap: sample k of a source is number
``k % n`` of its pass ``k // n``, in the order of an EpochSampler. No sample comes twice before all have come once. Only
the source of each position remains to be defined. An epoch takes exactly ``counts[i]`` samples from source i, and each
batch takes its share, rounded down or up: position q of step t has the ticket ``q * steps + u(t)``, where u permutes
the steps, and the tickets are dealt to the sources in consecutive ranges (systematic sampling). u is a multiplication
by about the golden ratio, so that the steps in which a share is rounded up are spread evenly. Inside a batch the
sources are shuffled, so that every rank gets its share too.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from motionmae.data.mixture.sources import Sources
from motionmae.data.rng import keyed_bits
from motionmae.data.sampler import EpochSampler, keyed_permutation

_GOLDEN = (math.sqrt(5) - 1) / 2


class Draw(NamedTuple):
    """Sample at a position of the stream."""

    sample: int  # id among the samples of all sources
    epoch: int  # pass through its source, with which the random numbers of its clips are keyed
    place: int  # shuffle index within this pass
    source: int = 0


class Cursor(NamedTuple):
    """Place in a source at which a step begins."""

    sampler: EpochSampler
    place: int  # shuffle index


class Order(Protocol):
    """Order of the samples of a run. Its methods are pure functions."""

    steps_per_epoch: int

    def draw(self, step: int, offset: int) -> Draw:
        """Return the sample at ``offset`` in the batch of ``step``, counted from the start of the run."""

    def next_in_window(self, draw: Draw) -> Draw:
        """Return the next sample of the same shuffle window, to replace a corrupt one."""

    def drawn(self, step: int) -> tuple[int, ...]:
        """Return the number of samples of each source in the first ``step`` steps."""

    def cursors(self, step: int, offset: int) -> list[Cursor]:
        """Return where in each source the samples from ``offset`` in ``step`` on begin, for downloads ahead."""

    def pass_of(self, source: int, number: int) -> EpochSampler:
        """Return the order of a pass through a source."""


def make_order(sources: Sources, *, seed: int, batch: int, steps_per_epoch: int) -> Order:
    if sources.is_mixture:
        return MixtureOrder(sources, seed, batch)
    return SingleOrder(sources, seed, batch, steps_per_epoch)


class SingleOrder:
    """:class:`Order` of one folder. Each epoch is one pass, without its incomplete last batch."""

    def __init__(self, sources: Sources, seed: int, batch: int, steps_per_epoch: int):
        self.steps_per_epoch, self._batch = steps_per_epoch, batch
        counts = _counts(sources)[0]
        self._pass = lru_cache(2)(lambda epoch: EpochSampler(counts, seed, epoch, sources.data.shuffle_window_shards))

    def draw(self, step: int, offset: int) -> Draw:
        epoch, index = self._place(step, offset)
        return Draw(self._pass(epoch).sample(index), epoch, index)

    def next_in_window(self, draw: Draw) -> Draw:
        sampler = self.pass_of(0, draw.epoch)
        index = sampler.next_in_window(draw.place)
        return Draw(sampler.sample(index), draw.epoch, index)

    def drawn(self, step: int) -> tuple[int, ...]:
        return (step * self._batch,)

    def cursors(self, step: int, offset: int) -> list[Cursor]:
        epoch, index = self._place(step, offset)
        return [Cursor(self._pass(epoch), index)]

    def pass_of(self, source: int, number: int) -> EpochSampler:
        return self._pass(number)

    def _place(self, step: int, offset: int) -> tuple[int, int]:
        """Return the epoch and the shuffle index in it."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_of_epoch * self._batch + offset


class MixtureOrder:
    """:class:`Order` of a mixture. Raises UserError if a source gets no sample."""

    def __init__(self, sources: Sources, seed: int, batch: int):
        counts = sources.epoch_counts(batch)
        self.steps_per_epoch = sum(counts) // batch
        self._seed, self._batch = seed, batch
        self._counts, self._sizes, self._first_ids = np.array(counts), sources.sizes, sources.first_ids
        self._ends = np.cumsum(self._counts)  # of the ranges of tickets
        self._spread = _spread(self.steps_per_epoch)
        self._before = self._count_before()
        shards, window = _counts(sources), sources.data.shuffle_window_shards
        seeds = [keyed_bits("source", seed, number) for number in range(len(counts))]
        self._pass = lru_cache(4 * len(counts))(
            lambda source, number: EpochSampler(shards[source], seeds[source], number, window)
        )
        self._step = lru_cache(2)(self._deal)

    def draw(self, step: int, offset: int) -> Draw:
        of, numbers = self._step(step)
        return self._draw(of[offset], *divmod(numbers[offset], self._sizes[of[offset]]))

    def next_in_window(self, draw: Draw) -> Draw:
        index = self.pass_of(draw.source, draw.epoch).next_in_window(draw.place)
        return self._draw(draw.source, draw.epoch, index)

    def drawn(self, step: int) -> tuple[int, ...]:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return tuple((epoch * self._counts + self._before[step_of_epoch]).tolist())

    def cursors(self, step: int, offset: int) -> list[Cursor]:
        places = [divmod(number, size) for number, size in zip(self.drawn(step), self._sizes, strict=True)]
        return [Cursor(self.pass_of(source, number), index) for source, (number, index) in enumerate(places)]

    def pass_of(self, source: int, number: int) -> EpochSampler:
        return self._pass(source, number)

    def _draw(self, source: int, number: int, index: int) -> Draw:
        sample = self._first_ids[source] + self.pass_of(source, number).sample(index)
        return Draw(sample, number, index, source)

    def _count_before(self) -> np.ndarray:
        """Return the samples of each source in the steps before each step of an epoch, int64 (steps + 1, sources)."""
        tickets = np.arange(self.steps_per_epoch) * self._spread % self.steps_per_epoch  # u(t)
        bounds = np.concatenate(([0], self._ends))
        below = -(-(bounds - tickets[:, None]) // self.steps_per_epoch)  # numbers q whose ticket is below a bound
        return np.concatenate((np.zeros((1, len(self._ends)), np.int64), np.cumsum(np.diff(below), axis=0)))

    def _deal(self, step: int) -> tuple[list[int], list[int]]:
        """Return the source of each position of a step, and its number among all samples drawn from this source."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        ticket = step_of_epoch * self._spread % self.steps_per_epoch
        tickets = np.arange(self._batch) * self.steps_per_epoch + ticket
        of = np.searchsorted(self._ends, tickets, side="right")
        of = of[keyed_permutation(self._batch, keyed_bits("mixture", self._seed, epoch, step_of_epoch))]
        numbers = np.zeros(self._batch, np.int64)
        for source, start in enumerate(self.drawn(step)):
            mine = of == source
            numbers[mine] = start + np.arange(mine.sum())
        return of.tolist(), numbers.tolist()


def _counts(sources: Sources) -> list[Sequence[int]]:
    """Return the samples of each shard of each source."""
    return [[shard.samples for shard in manifest.shards] for manifest in sources.manifests]


def _spread(steps: int) -> int:
    """Return the factor near ``steps`` / 1.618 that has no divisor in common with ``steps``."""
    return next(factor for factor in range(max(1, round(steps * _GOLDEN)), steps + 2) if math.gcd(factor, steps) == 1)

"""Steps between checkpoints: fixed, or chosen from failure rates and the times of this run (``auto``)."""

import time
from dataclasses import replace
from statistics import median
from typing import Literal

from motionmae.checkpointing.async_checkpointer import SaveResult
from motionmae.distributed.context import DistributedContext, broadcast_object
from motionmae.planning.checkpoint_interval import (
    DEFAULT_RATE,
    PUBLISHED_RATES,
    interval_steps,
    mean_time_between_failures,
)
from motionmae.planning.run_times import RunTimes, measure_times
from motionmae.runs.history import RunHistory

FIRST_STEPS = 100
"""Interval of ``auto`` until a save has been measured."""
_RECENT = 5  # saves whose median counts


class SaveInterval:
    """Interval between checkpoints, the same on every rank.

    Args:
        every: ``checkpoint.every_steps``.
        step: steps that the run has taken.
        nodes: number of nodes.
        history: earlier attempts of the run; only rank 0 reads it.
    """

    def __init__(
        self, every: int | Literal["auto"], step: int, nodes: int, rank: DistributedContext, history: RunHistory
    ) -> None:
        self.steps = FIRST_STEPS if every == "auto" else every
        self._is_auto, self._rank, self._nodes = every == "auto", rank, nodes
        self._times = RunTimes(step=0.0)
        self._saves: list[SaveResult] = []
        self._began = (time.perf_counter(), step)  # of the steps that are timed
        if self._is_auto:
            if rank.is_rank_zero:
                self._times = measure_times(history, self._times)
            self._choose()
        self._next = step + self.steps

    def is_due(self, step: int) -> bool:
        """Return whether ``step`` is saved. A fixed interval saves at its multiples."""
        return step >= self._next if self._is_auto else step % self.steps == 0

    def add(self, result: SaveResult) -> None:
        """Take the times of a save that was committed beside training."""
        self._saves = [*self._saves, result][-_RECENT:]

    def begin(self, step: int) -> None:
        """Begin the interval after a save at ``step``. All ranks must call this."""
        if not self._is_auto:
            return
        now, (began, first) = time.perf_counter(), self._began
        if self._rank.is_rank_zero and step > first:
            self._times = replace(self._times, step=(now - began) / (step - first), waste=0.0)
        self._began = (now, step)
        self._choose()
        self._next = step + self.steps

    def _choose(self) -> None:
        """Choose the interval on rank 0, for all ranks."""
        steps = self.steps
        if self._rank.is_rank_zero and self._times.step and (self._saves or self._times.has_saved):
            if self._saves:
                stall, save = (median(getattr(each, name) for each in self._saves) for name in ("blocking", "seconds"))
                self._times = replace(self._times, stall=stall, save=save)
            rate = PUBLISHED_RATES[DEFAULT_RATE].per_1000_node_days
            steps = interval_steps(self._times, mean_time_between_failures(self._nodes, rate, self._times))
        self.steps = broadcast_object(steps)

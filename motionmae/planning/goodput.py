"""Goodput of a run before it is submitted: a simulation of steps, failures, restarts and queue.

Failures and interruptions are Poisson processes while a run trains. Starts are short in comparison and always succeed.
A failure loses the steps since the last memory copy, or since the last committed checkpoint where the copies are lost
too. An interruption (a preemption, a time limit) saves first. The categories of lost time are those of
:mod:`monitoring.goodput`.
"""

import math
import random
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean, quantiles

from motionmae.planning.run_times import RunTimes


@dataclass(frozen=True)
class Conditions:
    """What happens to a run, and how often it saves."""

    seconds: float  # simulated time from the submission on
    mtbf: float  # mean seconds of training between failures
    every_steps: int  # steps between checkpoints
    memory_every_steps: int = 0  # steps between memory copies; 0 without
    memory_survives: float = 1.0  # share of the failures that leave a memory copy of each share
    interruptions_a_day: float = 0.0  # ends after a save, in a day of training
    time_limit: float = 0.0  # seconds of an attempt in the queue's view; 0 without a limit
    first_queue: float = 0.0  # seconds in the queue before the first start


@dataclass(frozen=True)
class PredictedGoodput:
    """Shares of the time, which add up to 1."""

    productive: float
    badput: dict[str, float]  # by category
    lowest: float  # productive share that 95 % of the simulated runs exceed
    highest: float  # productive share that 5 % exceed
    failures: float  # mean number
    lost_steps: float  # mean number per failure


@dataclass
class _Run:
    """One simulated run."""

    times: RunTimes
    conditions: Conditions
    draw: random.Random

    def __post_init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.spent["queue_wait"] = min(self.conditions.first_queue, self.conditions.seconds)
        self.failures = self.lost_steps = self.step = 0

    @property
    def left(self) -> float:
        return self.conditions.seconds - sum(self.spent.values())

    def simulate(self) -> "_Run":
        conditions = self.conditions
        while self.left > 0:
            self._spend("init", self.times.restart)
            fails = self._draw(1 / conditions.mtbf)
            limit = max(conditions.time_limit - self.times.restart, 0.0) if conditions.time_limit else math.inf
            stops = min(self._draw(conditions.interruptions_a_day / 86_400), limit)
            training = min(fails, stops, self.left)
            has_failed = fails == training
            self._train(training, has_failed)
            if has_failed:
                self._spend("downtime", self.times.failure_pause)
            elif training == stops:
                self._spend("checkpoint_blocking", self.times.save)
                self._spend("queue_wait", self.times.queue)
        return self

    def _draw(self, rate: float) -> float:
        """Draw the time until the next event of a Poisson process; infinite for a rate of 0."""
        return self.draw.expovariate(rate) if rate else math.inf

    def _spend(self, category: str, seconds: float) -> None:
        self.spent[category] += max(min(seconds, self.left), 0.0)

    def _train(self, seconds: float, has_failed: bool) -> None:
        """Take the steps of an attempt that trains for ``seconds``."""
        times, conditions = self.times, self.conditions
        stalls = times.stall / conditions.every_steps
        if conditions.memory_every_steps:
            stalls += times.copy_stall / conditions.memory_every_steps
        pace = times.step_whole + stalls
        steps = int(seconds / pace)
        lost = self._lost(steps, pace) if has_failed else 0
        self.failures += has_failed
        self.lost_steps += lost
        self.step += steps - lost
        kept = steps - lost
        self.spent["productive"] += kept * times.step
        self.spent["data_wait"] += kept * times.waste
        self.spent["lost_work"] += lost * times.step_whole
        self.spent["checkpoint_blocking"] += steps * stalls
        self.spent["other"] += seconds - steps * pace

    def _lost(self, steps: int, pace: float) -> int:
        """Return the steps that a failure after ``steps`` steps of the attempt loses."""
        conditions = self.conditions
        if conditions.memory_every_steps and self.draw.random() < conditions.memory_survives:
            return min((self.step + steps) % min(conditions.memory_every_steps, conditions.every_steps), steps)
        since = (self.step + steps) % conditions.every_steps
        if since * pace < self.times.save:  # the newest checkpoint was still being written
            since += conditions.every_steps
        return min(since, steps)


def predict_goodput(times: RunTimes, conditions: Conditions, runs: int = 200, seed: int = 0) -> PredictedGoodput:
    """Simulate ``runs`` runs and return the means."""
    done = [_Run(times, conditions, random.Random(f"{seed}-{number}")).simulate() for number in range(runs)]
    shares = [run.spent["productive"] / conditions.seconds for run in done]
    categories = ("queue_wait", "init", "data_wait", "checkpoint_blocking", "lost_work", "downtime", "other")
    failures = sum(run.failures for run in done)
    twentieths = quantiles(shares, n=20) if runs > 1 else [shares[0]]
    return PredictedGoodput(
        productive=fmean(shares),
        badput={name: fmean(run.spent[name] for run in done) / conditions.seconds for name in categories},
        lowest=twentieths[0],
        highest=twentieths[-1],
        failures=failures / runs,
        lost_steps=sum(run.lost_steps for run in done) / max(failures, 1),
    )

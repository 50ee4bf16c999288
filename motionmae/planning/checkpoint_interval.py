"""Interval between checkpoints that wastes the least time: Daly's formula, from failure rates and measured times."""

import math
from dataclasses import dataclass

from motionmae.planning.run_times import RunTimes

SECONDS_A_DAY = 86_400.0
SHORTEST_SECONDS, LONGEST_SECONDS = 60.0, 3600.0
"""Bounds of the interval. An hour is what a person would accept to lose."""


@dataclass(frozen=True)
class FailureRate:
    """Published rate of failures that end a job."""

    per_1000_node_days: float
    source: str


PUBLISHED_RATES = {
    "rsc1": FailureRate(6.50, "16,000 A100 of Meta's RSC-1, 11 months (https://arxiv.org/abs/2410.21680)"),
    "rsc2": FailureRate(2.34, "8,000 A100 of Meta's RSC-2, 11 months (https://arxiv.org/abs/2410.21680)"),
    "llama3": FailureRate(
        419 / (54 * 16_384 / 8) * 1000,
        "419 unexpected interruptions in 54 days of 16,384 H100, Llama 3 (https://arxiv.org/abs/2407.21783)",
    ),
}
"""Rates by name. A node has eight GPUs. Small jobs fail more often, for causes that do not grow with their nodes."""

DEFAULT_RATE = "rsc1"


def mean_time_between_failures(nodes: int, per_1000_node_days: float, times: RunTimes | None = None) -> float:
    """Return the expected seconds between failures of a job.

    The run's own failures correct the rate: the prior counts as one failure in its mean time.
    """
    prior = SECONDS_A_DAY * 1000 / (nodes * per_1000_node_days)
    if times is None:
        return prior
    return (prior + times.seconds_in_training) / (1 + times.failures)


def optimal_interval(stall: float, mtbf: float) -> float:
    """Return the seconds of work between two checkpoints that waste the least time.

    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, 2006
    (https://doi.org/10.1016/j.future.2004.11.016); its first term is Young's formula of 1974.

    Args:
        stall: seconds for which a checkpoint stops the work.
        mtbf: mean seconds between failures.
    """
    if stall >= 2 * mtbf:
        return mtbf
    share = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(share) / 3 + share / 9) - stall


def interval_steps(times: RunTimes, mtbf: float) -> int:
    """Return the steps between checkpoints for ``checkpoint.every_steps=auto``.

    The interval is between a minute and an hour, and at least twice the time of a whole save: the next save would wait.
    """
    shortest = max(SHORTEST_SECONDS, 2 * times.save)
    seconds = min(max(optimal_interval(times.stall, mtbf), shortest), max(LONGEST_SECONDS, shortest))
    return max(round(seconds / times.step_whole), 1)

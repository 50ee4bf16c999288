"""Interval between checkpoints: the published rates, Daly's formula and its bounds, worked by hand."""

import math

import pytest

from motionmae.planning.checkpoint_interval import (
    DEFAULT_RATE,
    PUBLISHED_RATES,
    interval_steps,
    mean_time_between_failures,
    optimal_interval,
)
from motionmae.planning.run_times import RunTimes


def test_the_rates_are_the_published_ones() -> None:
    rates = {name: rate.per_1000_node_days for name, rate in PUBLISHED_RATES.items()}
    assert rates == {"rsc1": 6.50, "rsc2": 2.34, "llama3": pytest.approx(419 / 54 / 2048 * 1000)}
    assert DEFAULT_RATE == "rsc1"


def test_the_prior_counts_as_one_failure_in_its_time() -> None:
    assert mean_time_between_failures(4, 2.5) == 86_400 * 1000 / 10
    times = RunTimes(step=1.0, failures=3, seconds_in_training=360_000.0)
    assert mean_time_between_failures(4, 2.5, times) == (8_640_000 + 360_000) / 4


@pytest.mark.parametrize(("stall", "mtbf"), [(10.0, 7200.0), (1.0, 86_400.0), (300.0, 600.0)])
def test_dalys_formula(stall: float, mtbf: float) -> None:
    """Equation 37 of the paper."""
    share = stall / (2 * mtbf)
    expected = math.sqrt(2 * stall * mtbf) * (1 + share**0.5 / 3 + share / 9) - stall
    assert optimal_interval(stall, mtbf) == pytest.approx(expected, rel=1e-12)


def test_a_save_that_is_longer_than_two_failures_apart_comes_at_each() -> None:
    assert optimal_interval(200.0, 100.0) == 100.0
    assert optimal_interval(199.9, 100.0) != 100.0


@pytest.mark.parametrize(
    ("times", "mtbf", "steps"),
    [
        (RunTimes(step=1.0, stall=0.0, save=1.0), 1e6, 60),  # a minute
        (RunTimes(step=1.0, stall=1e4, save=1.0), 1e9, 3600),  # an hour
        (RunTimes(step=1.0, stall=0.0, save=40.0), 1e6, 80),  # two saves
        (RunTimes(step=1.0, stall=1e4, save=2000.0), 1e9, 4000),  # two saves, also beyond an hour
        (RunTimes(step=1.0, waste=0.5, stall=0.0, save=1.0), 1e6, 40),
        (RunTimes(step=1000.0, stall=0.0, save=1.0), 1e6, 1),
        (RunTimes(step=0.7, stall=0.0, save=1.0), 1e6, 86),  # 85.7
    ],
)
def test_the_interval_in_steps(times: RunTimes, mtbf: float, steps: int) -> None:
    assert interval_steps(times, mtbf) == steps

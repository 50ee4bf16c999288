"""Times of a run from rows of its history, worked by hand."""

from pathlib import Path
from typing import Any

import pytest

from motionmae.planning.run_times import RunTimes, measure_times
from motionmae.runs.history import RunHistory
from tests.runs.test_history import event, row, start
from tests.runs.test_summary import write

ASSUMED = RunTimes(step=9.0)


def times_of(folder: Path, *rows: dict[str, Any]) -> RunTimes:
    return measure_times(RunHistory(write(folder / "run", *rows)), ASSUMED)


def test_without_a_history_the_assumptions_stay(tmp_path: Path) -> None:
    assert measure_times(RunHistory(tmp_path / "none"), ASSUMED) == ASSUMED
    assert (ASSUMED.stall, ASSUMED.save, ASSUMED.copy_stall) == (1.0, 30.0, 0.1)
    assert (ASSUMED.restart, ASSUMED.failure_pause, ASSUMED.queue) == (60.0, 30.0, 600.0)
    assert RunTimes(step=2.0, waste=0.5).step_whole == 2.5


def test_rows_count_by_their_steps(tmp_path: Path) -> None:
    """Ten steps of 1 s with 0.25 s of waiting, and thirty of 3 s with 0.5 s of waiting and 0.25 s of other work."""
    found = times_of(
        tmp_path,
        row(10, 1.0, steps=10, data_wait_seconds=0.25),
        row(40, 2.0, steps=30, step_seconds=3.0, data_wait_seconds=0.5, other_seconds=0.25, memory_copy_seconds=0.2),
        row(41, 3.0, memory_copy_seconds=0.0),
    )
    whole = (10 * 1 + 30 * 3 + 1 * 1) / 41
    waste = (10 * 0.25 + 30 * 0.75) / 41
    assert found.step == pytest.approx(whole - waste)
    assert found.waste == pytest.approx(waste)
    assert found.step_whole == pytest.approx(whole)
    assert found.copy_stall == pytest.approx(30 * 0.2)  # one copy in these thirty steps
    assert (found.has_saved, found.stall) == (False, 1.0)


def test_the_last_save_stops_the_training_for_all_of_its_time_and_does_not_count(tmp_path: Path) -> None:
    found = times_of(
        tmp_path,
        event("checkpoint", 1.0, blocking=0.5, seconds=4.0),
        event("checkpoint", 2.0, blocking=1.5, seconds=6.0),
        event("checkpoint", 3.0, blocking=8.0, seconds=8.0),
        event("checkpoint", 4.0, blocking=2.5),  # of an older version
    )
    assert (found.stall, found.save) == (1.5, 6.0)
    assert found.has_saved


def test_a_run_with_only_a_last_save_has_measured_no_stall(tmp_path: Path) -> None:
    found = times_of(tmp_path, event("checkpoint", 3.0, blocking=8.0, seconds=8.0))
    assert (found.stall, found.save, found.has_saved) == (1.0, 8.0, False)


@pytest.mark.parametrize(
    ("reason", "is_failure"),
    [("preempted", False), ("terminated", False), ("stopped", False), ("crashed", True), ("hung", True)],
)
def test_pauses_after_a_save_and_after_a_failure(tmp_path: Path, reason: str, is_failure: bool) -> None:
    found = times_of(
        tmp_path,
        start(100.0, age=10.0),
        event("ready", 130.0, total_steps=9),
        event("stop", 150.0, reason=reason),
        start(200.0, "b", age=5.0),
        event("ready", 230.0, attempt="b", total_steps=9),
        start(220.0, "c"),  # a clock that is behind
    )
    assert (found.failures, found.interruptions) == ((2, 0) if is_failure else (1, 1))
    assert found.restart == ((130 - 90) + (230 - 195)) / 2
    if is_failure:
        assert (found.failure_pause, found.queue) == (45 / 2, 600.0)
    else:
        assert (found.failure_pause, found.queue) == (0.0, 45.0)
    assert found.seconds_in_training == 20 + 0

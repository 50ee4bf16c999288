"""Times of a run that decide its goodput: steps, saves, restarts and queue, measured in its history or assumed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row
from motionmae.runs.history import AttemptRecord, RunHistory


@dataclass(frozen=True)
class RunTimes:
    """Mean times in seconds. The defaults are assumptions about a run that has no history."""

    step: float  # productive part of a step
    waste: float = 0.0  # of each step: waiting for data, metrics
    stall: float = 1.0  # for which a save stops the training
    save: float = 30.0  # from the request of a save to its commit
    copy_stall: float = 0.1  # for which a memory copy stops the training
    restart: float = 60.0  # from the start of the processes to the first step
    failure_pause: float = 30.0  # from a failure to the start of the processes, inside the allocation
    queue: float = 600.0  # from an end after a save, such as a preemption, to the start of the processes
    failures: int = 0  # attempts that ended without a save
    interruptions: int = 0  # attempts that ended after a save, and began again
    seconds_in_training: float = 0.0  # from the first step of each attempt to its last row
    has_saved: bool = False  # whether the time of a save was measured

    @property
    def step_whole(self) -> float:
        """Seconds of a step without saves."""
        return self.step + self.waste


def measure_times(history: RunHistory, assumed: RunTimes) -> RunTimes:
    """Measure the times in a run's history; a time without a measurement stays as ``assumed``."""
    rows = [row for row in history.all_rows if row.get("steps", 1) > 0]
    steps = sum(row.get("steps", 1) for row in rows)
    measured: dict[str, float] = {}
    if steps:
        whole = _mean_of_steps(rows, "step_seconds")
        measured["step"] = whole - _mean_of_steps(rows, "data_wait_seconds") - _mean_of_steps(rows, "other_seconds")
        measured["waste"] = whole - measured["step"]
    saves = history.of(Kind.CHECKPOINT)
    measured |= _mean("stall", (row["blocking"] for row in saves if not _is_last_save(row)))
    measured |= _mean("save", (row["seconds"] for row in saves if "seconds" in row))
    copies = [row["memory_copy_seconds"] * row.get("steps", 1) for row in rows if row.get("memory_copy_seconds")]
    measured |= _mean("copy_stall", copies)
    attempts = history.attempts
    measured |= _mean("restart", (each.ready - each.began for each in attempts if each.ready is not None))
    after_failure: list[float] = []
    after_save: list[float] = []
    for before, after in pairwise(attempts):
        pauses = after_save if _has_saved(before) else after_failure
        pauses.append(max(after.began - before.last_sign, 0.0))
    measured |= _mean("failure_pause", after_failure) | _mean("queue", after_save)
    return replace(
        assumed,
        **measured,
        failures=len(after_failure),
        interruptions=len(after_save),
        seconds_in_training=sum(each.last_sign - each.ready for each in attempts if each.ready is not None),
        has_saved="stall" in measured,
    )


def _has_saved(attempt: AttemptRecord) -> bool:
    """Return whether the attempt ended after a save, so that no work was lost."""
    return attempt.end in (EndReason.PREEMPTED, EndReason.TERMINATED, EndReason.STOPPED)


def _is_last_save(row: Row) -> bool:
    """Return whether the training waited for the whole write, as before a stop."""
    return bool(row.get("seconds")) and row["blocking"] >= row["seconds"]


def _mean_of_steps(rows: Iterable[Row], key: str) -> float:
    weighed = [(row.get(key) or 0.0, row.get("steps", 1)) for row in rows]
    return sum(value * steps for value, steps in weighed) / sum(steps for _, steps in weighed)


def _mean(name: str, values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    return {name: fmean(found)} if found else {}

"""Goodput of a run: seconds spent on productive steps, and all other seconds (badput) by category.

The input is the run's events and metrics rows. The categories of badput:

queue_wait           submitted or preempted, until the process starts (again)
init                 imports, rendezvous, building the model
restore              verifying and loading the checkpoint
data_wait            rank 0 waits for its loader
checkpoint_blocking  a save or a memory copy blocks training
validation           held-out videos are measured
lost_work            steps repeated after a resume, and steps skipped as non-finite
downtime             after an attempt that failed or was stopped by the stop file, until the run is submitted or
                     started again
other                the rest of an attempt: metrics, signal checks, work after the last row before a crash
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from motionmae.runs.events import Kind, Row
from motionmae.runs.history import RunHistory, idle_category

CATEGORIES = {
    "queue_wait": "waiting in the queue", "init": "starting", "restore": "restoring", "data_wait": "waiting for data",
    "checkpoint_blocking": "saving", "validation": "validating", "lost_work": "work done again", "downtime": "down",
    "other": "other",
}  # fmt: skip
"""Title of each badput category."""


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run. ``productive`` and ``badput`` add up to ``elapsed``."""

    elapsed: float
    productive: float
    badput: dict[str, float]  # seconds by category, for all CATEGORIES

    @property
    def ratio(self) -> float:
        """Productive share of all time, queue included; 0 before any time has passed."""
        return self.productive / self.elapsed if self.elapsed else 0.0

    @property
    def ratio_without_queue(self) -> float:
        """Productive share of the time outside the queue."""
        running = self.elapsed - self.badput["queue_wait"]
        return self.productive / running if running > 0 else 0.0


@dataclass
class _Steps:
    """Steps of one metrics row that no later attempt has repeated."""

    last: int
    count: int
    productive: float  # seconds of one step for forward, backward and update
    waiting: float  # seconds of one step waiting for data

    def undo_after(self, step: int) -> float:
        """Remove the steps after ``step`` and return their seconds."""
        undone = min(max(self.last - step, 0), self.count)
        self.last -= undone
        self.count -= undone
        return undone * (self.productive + self.waiting)


@dataclass
class GoodputTracker:
    """Accumulator of goodput from rows in order of time. Runs of millions of steps fit in memory."""

    start: float | None = None  # time of the submission or the first start
    last_sign: float = 0.0  # time of the last row
    row_interval: float = 0.0  # longest time between two metrics rows of the current attempt
    finished: bool = False  # the last step was taken; rows of a later start change nothing
    _badput: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0.0))
    _steps: list[_Steps] = field(default_factory=list)
    _idle_category: str = "downtime"  # badput category of time without rows
    _began: float | None = None  # start time of an attempt that has not begun its first step; None otherwise
    _restore_seconds: float = 0.0
    _step: int = 0
    _skipped: int = 0
    _last_row: float | None = None

    def add(self, row: Row) -> None:
        """Take the next event or metrics row."""
        if self.finished:
            return
        kind, time = row.get("kind"), row["time"]
        if self.start is None:
            self.start = self.last_sign = time - row.get("age", 0.0)
        if kind in (Kind.SUBMITTED, Kind.FAILURE):  # written by other processes, after the attempt's own last row
            self._end_startup(self.last_sign)
            self._badput[self._idle_category] += max(time - self.last_sign, 0.0)
            self._idle_category = idle_category(row)
        elif kind == Kind.START:
            self._begin(max(time - row.get("age", 0.0), self.last_sign))
        elif kind == Kind.RESUME:
            self._restore_seconds = row["seconds"]
        elif kind in (Kind.READY, Kind.ROLLBACK):
            self._continue_from(row)
        elif kind == Kind.CHECKPOINT:
            self._badput["checkpoint_blocking"] += row["blocking"]
        elif kind == Kind.VALIDATION:
            self._badput["validation"] += row["seconds"]
        elif kind == Kind.NONFINITE:
            self._skipped += 1
        elif kind == Kind.STOP:
            self._end_startup(time)
            self._idle_category = idle_category(row)
        elif kind == Kind.FINISH:
            self._end_startup(time)
            self.finished = True
        elif kind is None:
            self._add_metrics(row)
        self.last_sign = max(self.last_sign, time)

    def totals(self, end: float | None = None) -> Goodput:
        """Return the goodput until ``end``, or until the last row. Time after the last row counts as idle."""
        badput = dict(self._badput)
        if self.start is None:
            return Goodput(0.0, 0.0, badput)
        elapsed = self.last_sign - self.start
        productive = sum(steps.count * steps.productive for steps in self._steps)
        badput["data_wait"] = sum(steps.count * steps.waiting for steps in self._steps)
        if self._began is not None:
            badput["init"] += self.last_sign - self._began
        badput["other"] = elapsed - productive - sum(badput.values())
        idle = max((end or 0.0) - self.last_sign, 0.0) if not self.finished else 0.0
        badput[self._idle_category] += idle
        return Goodput(elapsed + idle, productive, badput)

    def is_silent(self, now: float) -> bool:
        """Return whether the time since the last row far exceeds the usual time between rows."""
        return now - self.last_sign > 3 * self.row_interval + 60

    def _begin(self, began: float) -> None:
        self._end_startup(self.last_sign)
        self._badput[self._idle_category] += began - self.last_sign
        self._began, self._idle_category, self._restore_seconds = began, "downtime", 0.0
        self.last_sign, self.row_interval, self._last_row = began, 0.0, None

    def _end_startup(self, time: float) -> None:
        if self._began is not None:
            self._badput["init"] += max(time - self._began - self._restore_seconds, 0.0)
            self._badput["restore"] += self._restore_seconds
            self._began = None

    def _continue_from(self, row: Row) -> None:
        """Continue from the row's step, and count later steps of earlier rows as lost work."""
        self._end_startup(row["time"])
        self._step, self._skipped = row["step"], 0
        while self._steps and self._steps[-1].last > row["step"]:
            self._badput["lost_work"] += self._steps[-1].undo_after(row["step"])
            if self._steps[-1].count:
                break
            self._steps.pop()

    def _add_metrics(self, row: Row) -> None:
        count, self._step = row["step"] - self._step, row["step"]
        productive = row["step_seconds"] - row["data_wait_seconds"] - row.get("other_seconds", 0.0)
        skipped, self._skipped = min(self._skipped, count), 0
        self._badput["lost_work"] += skipped * productive
        self._badput["checkpoint_blocking"] += count * row.get("memory_copy_seconds", 0.0)
        if count > skipped:
            self._steps.append(_Steps(row["step"], count - skipped, productive, row["data_wait_seconds"]))
        if self._last_row is not None:
            self.row_interval = max(self.row_interval, row["time"] - self._last_row)
        self._last_row = row["time"]


def track_goodput(rows: Iterable[Row]) -> GoodputTracker:
    """Return a tracker of all events and metrics rows of a run. The rows may be in any order."""
    tracker = GoodputTracker()
    for row in sorted(rows, key=lambda row: row["time"]):
        tracker.add(row)
    return tracker


def goodput_of(history: RunHistory) -> Goodput:
    """Compute the goodput of a run until its last row."""
    return track_goodput([*history.events, *history.all_rows]).totals()

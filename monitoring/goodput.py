"""Where the hours of a run went: productive steps, and every other second by its cause.

A run's events and metrics rows are its books. They are keyed by attempt, never by step alone: after a save on a
signal no step is repeated, yet time was lost. What is told apart:

queue_wait           submitted, or preempted, until the process is started (again)
init                 imports, rendezvous, building the model
restore              verifying and loading the checkpoint
data_wait            rank 0 waits for its loader
checkpoint_blocking  a save holds up training
lost_work            steps done again after a resume, and steps skipped because they were not finite
downtime             from the last sign of life of an attempt that failed, or that the stop file ended, until the
                     next is submitted or started
other                what is left of an attempt: metrics, agreement, the work after the last row before a crash
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from motionmae.runs.events import Kind, Row, idle_category

CAUSES = (
    "queue_wait", "init", "restore", "data_wait", "checkpoint_blocking", "lost_work", "downtime", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run; ``productive`` and ``badput`` add up to ``elapsed``."""

    elapsed: float
    productive: float
    badput: dict[str, float]
    """Seconds by cause, each of CAUSES."""

    @property
    def ratio(self) -> float:
        """Share of the time that was productive, time in the queue included; 0 before any time has passed."""
        return self.productive / self.elapsed if self.elapsed else 0.0

    @property
    def ratio_without_queue(self) -> float:
        """The same without time in the queue."""
        running = self.elapsed - self.badput["queue_wait"]
        return self.productive / running if running > 0 else 0.0


@dataclass
class _Steps:
    """Steps that one metrics row told of and that still count."""

    last: int
    count: int
    productive: float
    """Seconds of one step: forward, backward, update."""
    waiting: float
    """Seconds of one step waiting for data."""

    def undo_after(self, step: int) -> float:
        """Take out the steps after ``step``; returns their seconds."""
        undone = min(max(self.last - step, 0), self.count)
        self.last -= undone
        self.count -= undone
        return undone * (self.productive + self.waiting)


@dataclass
class GoodputTracker:
    """Takes rows in the order of their times and tells the account so far; runs of millions of steps fit."""

    start: float | None = None
    """When the run was submitted or first started."""
    last_sign: float = 0.0
    """When it last said something."""
    interval: float = 0.0
    """Longest time between two metrics rows of the present attempt."""
    finished: bool = False
    """The last step is taken; whatever is written later (somebody starts it again) changes nothing."""
    _badput: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    _steps: list[_Steps] = field(default_factory=list)
    _gap: str = "downtime"
    """The cause that silence belongs to."""
    _began: float | None = None
    """Start of an attempt that is not ready yet."""
    _restoring: float = 0.0
    _step: int = 0
    _skipped: int = 0
    _last_row: float | None = None

    def add(self, row: Row) -> None:
        """Enter an event or a metrics row."""
        if self.finished:
            return
        kind, time = row.get("kind"), row["time"]
        if self.start is None:
            self.start = self.last_sign = time - row.get("age", 0.0)
        if kind in (Kind.SUBMITTED.value, Kind.FAILURE.value):  # said by others, after the attempt's own last sign
            self._end_building(self.last_sign)
            self._badput[self._gap] += max(time - self.last_sign, 0.0)
            self._gap = idle_category(row)
        elif kind == Kind.START.value:
            self._begin(max(time - row.get("age", 0.0), self.last_sign))
        elif kind == Kind.RESUME.value:
            self._restoring = row["seconds"]
        elif kind in (Kind.READY.value, Kind.ROLLBACK.value):  # both say from which step the run goes on
            self._ready(row)
        elif kind == Kind.CHECKPOINT.value:
            self._badput["checkpoint_blocking"] += row["blocking"]
        elif kind == Kind.NONFINITE.value:
            self._skipped += 1
        elif kind in (Kind.STOP.value, Kind.FINISH.value):
            self._end_building(time)
            self._gap = idle_category(row)
            self.finished = kind == Kind.FINISH.value
        elif kind is None:
            self._metrics(row)
        self.last_sign = max(self.last_sign, time)

    def account(self, end: float | None = None) -> Goodput:
        """The account until ``end``, by default the last sign of life; the silence after it has its own cause."""
        badput = dict(self._badput)
        if self.start is None:
            return Goodput(0.0, 0.0, badput)
        elapsed = self.last_sign - self.start
        productive = sum(steps.count * steps.productive for steps in self._steps)
        badput["data_wait"] = sum(steps.count * steps.waiting for steps in self._steps)
        if self._began is not None:
            badput["init"] += self.last_sign - self._began
        badput["other"] = elapsed - productive - sum(badput.values())
        silence = max((end or 0.0) - self.last_sign, 0.0) if not self.finished else 0.0
        badput[self._gap] += silence
        return Goodput(elapsed + silence, productive, badput)

    def silent(self, now: float) -> bool:
        """Whether nothing was heard for so long that it is no longer the usual time between two rows."""
        return now - self.last_sign > 3 * self.interval + 60

    def _begin(self, began: float) -> None:
        self._end_building(self.last_sign)
        self._badput[self._gap] += began - self.last_sign
        self._began, self._gap, self._restoring = began, "downtime", 0.0
        self.last_sign, self.interval, self._last_row = began, 0.0, None

    def _end_building(self, time: float) -> None:
        if self._began is not None:
            self._badput["init"] += max(time - self._began - self._restoring, 0.0)
            self._badput["restore"] += self._restoring
            self._began = None

    def _ready(self, row: Row) -> None:
        """What was done after the row's step will be done again."""
        self._end_building(row["time"])
        self._step, self._skipped = row["step"], 0
        while self._steps and self._steps[-1].last > row["step"]:
            self._badput["lost_work"] += self._steps[-1].undo_after(row["step"])
            if self._steps[-1].count:
                break
            self._steps.pop()

    def _metrics(self, row: Row) -> None:
        count, self._step = row["step"] - self._step, row["step"]
        productive = row["step_seconds"] - row["data_wait_seconds"] - row.get("other_seconds", 0.0)
        skipped, self._skipped = min(self._skipped, count), 0
        self._badput["lost_work"] += skipped * productive
        if count > skipped:
            self._steps.append(_Steps(row["step"], count - skipped, productive, row["data_wait_seconds"]))
        if self._last_row is not None:
            self.interval = max(self.interval, row["time"] - self._last_row)
        self._last_row = row["time"]


def ledger_of(rows: Iterable[Row]) -> GoodputTracker:
    """The books of a run, from its events and metrics rows in any order."""
    ledger = GoodputTracker()
    for row in sorted(rows, key=lambda row: row["time"]):
        ledger.add(row)
    return ledger

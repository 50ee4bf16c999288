"""The history of a run, read from its events.jsonl and metrics.jsonl."""

import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from motionmae.config import Config, saved_config
from motionmae.errors import UserError
from motionmae.files import FileTail
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, Row, drop_repeated, parse_rows, read_rows
from motionmae.runs.row_schema import fault_of

START_VARIABLE = "MOTIONMAE_JOB_START"
"""Environment variable with the number of starts that a job has made inside its allocation."""
_SILENT_SECONDS = 900.0  # a run without a new row for this long is reported as silent
_STRAGGLER_SCORE = 1.1  # the slowest rank counts as a straggler from this multiple of the median rank's time


class RunState(StrEnum):
    """State of a run, as people name it."""

    QUEUED = "queued"  # submitted, and no attempt has begun since
    STARTING = "starting"
    TRAINING = "training"
    SILENT = "silent"  # no row for a long time, and no end
    FINISHED = "finished"
    STOPPED = "stopped"  # by its user: the stop file, scancel, Ctrl-C
    PREEMPTED = "preempted"  # saved, and waits in the queue to continue
    REQUEUED = "requeued"  # failed, and waits in the queue to continue
    FAILED = "failed"


@dataclass(frozen=True)
class Attempt:
    """Identity of one start of a run. Every requeue, and every restart inside the allocation, starts a new attempt.

    Code that knows only the lease, or only Slurm, leaves the other fields at their defaults.
    """

    number: int = 0  # fencing number of the lease: 1 for the first attempt, higher for newer attempts
    id: str = ""  # value of "attempt" in the rows of events.jsonl and metrics.jsonl; newer ids sort later
    host: str = ""  # host of rank 0
    job: str = ""  # Slurm's job id; empty without Slurm
    restart: int = 0  # Slurm's count of the job's restarts
    start: int = 0  # starts inside the allocation since then

    @classmethod
    def begin(cls, number: int) -> "Attempt":
        """Return a new attempt on this host, with a fresh id."""
        identity = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        job, restart = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        start = int(os.environ.get(START_VARIABLE) or 0)
        return cls(number, identity, socket.gethostname(), job, restart, start)


@dataclass
class AttemptRecord:
    """Course of one attempt, read from its rows."""

    attempt: Attempt
    began: float  # start time of rank 0's process, in seconds since the epoch
    hosts: list[str]
    world: int
    ready: float | None = None  # time at which the first step began
    first_step: int = 0  # steps that earlier attempts had completed
    last_step: int = 0
    last_sign: float = 0.0  # time of the last row
    end: EndReason | None = None  # from the attempt's rows; None while it runs, or if it died without writing one
    error: str = ""  # the error that ended the attempt
    failure: EndReason | None = None  # end reason that the requeue policy determined from outside the processes
    queued: bool = False  # submitted again, or requeued by the requeue policy, after its end
    idle_marks: list[tuple[float, str]] = field(default_factory=list)  # events after the end: (time, badput category)

    @property
    def run_state(self) -> str:
        """Value of the metric run_state."""
        if self.end:
            return self.end.run_state
        return "starting" if self.ready is None else "training"

    def state(self, now: float) -> RunState:
        """State of the run while this attempt is its newest, at ``now`` in seconds since the epoch."""
        end = self.end or self.failure
        if self.queued and end is not EndReason.FINISHED:
            return RunState.REQUEUED if self.failure else RunState.QUEUED
        if end:
            return RunState(end.run_state)
        if now - self.last_sign > _SILENT_SECONDS:
            return RunState.SILENT
        return RunState.STARTING if self.ready is None else RunState.TRAINING

    @property
    def end_text(self) -> str:
        """Clause about the end, for people."""
        end = self.end or self.failure
        return self.error or (end.description if end else "silent")

    def idle_until(self, until: float) -> list[tuple[float, float, str]]:
        """Return the intervals of idle time after the attempt, as (begin, end, badput category)."""
        marks = [(self.last_sign, "downtime")]
        marks += [(max(moment, self.last_sign), category) for moment, category in self.idle_marks]
        intervals = pairwise([*marks, (until, "")])
        return [(begin, end, category) for (begin, category), (end, _) in intervals if begin < end]


class AttemptTracker:
    """Builder of a run's attempts from its events in order. Starting a finished run does not count as an attempt."""

    def __init__(self, events: Iterable[Row] = ()) -> None:
        self.attempts: list[AttemptRecord] = []
        for row in events:
            self.add(row)

    @property
    def finished(self) -> bool:
        """Whether the run has taken and saved its last step."""
        return bool(self.attempts) and self.attempts[-1].end is EndReason.FINISHED

    def add(self, row: Row) -> None:
        if self.finished:
            return
        kind = row["kind"]
        if kind == Kind.START:
            host = row.get("host", "?")
            attempt = Attempt(row.get("number", 0), row["attempt"], host, row.get("job", ""), row.get("restart", 0))
            began = row["time"] - row.get("age", 0.0)
            self.attempts.append(AttemptRecord(attempt, began, row.get("hosts", [host]), row["world"]))
        if not self.attempts:
            return
        last = self.attempts[-1]
        if kind in (Kind.STOP, Kind.FAILURE, Kind.SUBMITTED):
            last.idle_marks.append((row["time"], idle_category(row)))
            last.queued = kind == Kind.SUBMITTED or (kind == Kind.FAILURE and bool(row.get("again")))
        if row["attempt"] != last.attempt.id:
            return
        if kind == Kind.FAILURE:
            last.failure = EndReason(row["reason"])
            return
        last.last_sign = row["time"]
        if kind == Kind.READY:
            last.ready, last.first_step, last.last_step = row["time"], row["step"], row["step"]
        elif kind == Kind.STOP:
            last.end, last.error = EndReason(row["reason"]), row.get("error", "")
        elif kind == Kind.FINISH:
            last.end = EndReason.FINISHED


class RunHistory:
    """Records of a run in its run folder. The files are read on first use and may be absent.

    Rows that do not fit their schema are left out; ``notes`` has a sentence about those of each file read so far.
    """

    def __init__(self, run: Path) -> None:
        self.folder = RunFolder(run)
        self.name = run.resolve().name
        self.notes: list[str] = []

    @cached_property
    def events(self) -> list[Row]:
        """Rows of events.jsonl."""
        return self._read(self.folder.events, is_event=True)

    @cached_property
    def all_rows(self) -> list[Row]:
        """All rows of metrics.jsonl, including those of steps that a later attempt repeated."""
        return self._read(self.folder.metrics, is_event=False)

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of metrics.jsonl that count: one row for each logged step, in order of steps."""
        return drop_repeated(self.all_rows)

    @cached_property
    def attempts(self) -> list[AttemptRecord]:
        """Attempts, oldest first."""
        attempts = AttemptTracker(self.events).attempts
        by_id = {record.attempt.id: record for record in attempts}
        for row in self.all_rows:
            if record := by_id.get(row["attempt"]):
                record.last_step = row["step"]
                record.last_sign = max(record.last_sign, row["time"])
        return attempts

    @cached_property
    def config(self) -> Config | None:
        """Config of the newest attempt; None if config.yaml is absent or cannot be read."""
        return saved_config(self.folder.config)

    def _read(self, path: Path, *, is_event: bool) -> list[Row]:
        checked = [(row, fault_of(row, is_event=is_event)) for row in read_rows(path)]
        if faults := [f"row {number}, {fault}" for number, (_, fault) in enumerate(checked, 1) if fault]:
            self.notes.append(f"{path}: {len(faults)} of {len(checked)} rows are damaged and left out ({faults[0]})")
        return [row for row, fault in checked if not fault]

    def require_events(self) -> "RunHistory":
        """Return this history, or raise a UserError if the run has no events."""
        if not self.events:
            raise UserError(
                f"{self.folder.events} has no events: give the folder of a run that has begun, such as runs/demo"
            )
        return self

    def of(self, *kinds: Kind) -> list[Row]:
        return [row for row in self.events if row["kind"] in kinds]

    def ended(self, attempt_id: str) -> bool:
        """Return whether the attempt has recorded its end."""
        ends = (row for row in read_rows(self.folder.events) if row.get("kind") in (Kind.STOP, Kind.FINISH))
        return any(row.get("attempt") == attempt_id for row in ends)  # whatever else the row lacks

    @property
    def finished_step(self) -> int | None:
        """Step at which the run finished; None if the run has not finished."""
        return next((row["step"] for row in self.of(Kind.FINISH)), None)

    @property
    def git_revision(self) -> str:
        """Commit of the newest attempt that recorded one; empty if none did."""
        return next((row["code"] for row in reversed(self.of(Kind.START)) if row.get("code")), "")

    @property
    def resumes(self) -> list[int]:
        """First logged step of every attempt after the first."""
        return [after["step"] for before, after in pairwise(self.rows) if before["attempt"] != after["attempt"]]

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None before the first attempt is ready."""
        totals = [row["total_steps"] for row in self.of(Kind.READY)]
        return totals[-1] if totals else None

    @property
    def state(self) -> RunState:
        return self.attempts[-1].state(time.time()) if self.attempts else RunState.QUEUED

    @property
    def losses(self) -> list[str]:
        """Keys of the losses that are not 0 throughout, in logged order."""
        keys = [key for key in self.rows[-1] if key == "loss" or key.startswith("loss_")] if self.rows else []
        return [key for key in keys if any(row.get(key) for row in self.rows)]

    @property
    def validations(self) -> list[Row]:
        """Events of the validations, the last one of each step, in order of steps."""
        found = {row["step"]: row for row in self.of(Kind.VALIDATION) if "error" not in row}
        return [found[step] for step in sorted(found)]

    @property
    def best_validation(self) -> Row | None:
        """Validation whose checkpoint is kept as the best; None if there is none."""
        return next((row for row in reversed(self.validations) if row.get("is_best")), None)

    def stragglers(self) -> Counter[int]:
        """Count the logged steps at which each rank was the slowest, by at least 10 % over the median."""
        scored = (row for row in self.rows if "slowest_rank" in row)
        return Counter(row["slowest_rank"] for row in scored if row.get("slowest_score", 0) > _STRAGGLER_SCORE)

    def host_of(self, rank: int) -> str:
        """Return the host of a rank of the newest attempt."""
        if not self.attempts:
            return "?"
        last = self.attempts[-1]
        return last.hosts[min(rank * len(last.hosts) // last.world, len(last.hosts) - 1)]


def idle_category(row: Row) -> str:
    """Return the badput category of the idle time after a `stop`, `submitted` or `failure` event."""
    if row["kind"] == Kind.STOP:
        return EndReason(row["reason"]).badput
    queued = row.get("again") and not row.get("inside")
    return "queue_wait" if row["kind"] == Kind.SUBMITTED or queued else "downtime"


class RunTail:
    """Reader of the rows that a running run appends to its files."""

    def __init__(self, run: Path) -> None:
        folder = RunFolder(run)
        self._tails = [FileTail(folder.events), FileTail(folder.metrics)]

    def new_rows(self) -> list[Row]:
        """Return the rows written since the last call, in order of time. Incomplete lines wait for the next call."""
        rows = [row for tail in self._tails for row in parse_rows(tail.new_text().splitlines())]
        return sorted((row for row in rows if not fault_of(row, is_event="kind" in row)), key=lambda row: row["time"])

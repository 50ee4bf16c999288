"""What a run says about itself: events and metrics rows, told to sinks; JSON lines are the source of truth.

Every row carries the attempt that wrote it. A resumed run goes back to its checkpoint and repeats steps, so the
files hold some steps twice: :func:`current_rows` gives the rows that count. Only rank 0 writes.
"""

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from motionmae.runs.end_reason import EndReason

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class Kind(str, Enum):
    """Kinds of events."""

    SUBMITTED = "submitted"
    """The run was handed to a scheduler; belongs to no attempt."""
    START = "start"
    """An attempt begins: world size, hosts in the order of their ranks, seconds since its process was started, the
    commit of its code."""
    RESUME = "resume"
    """It took up a checkpoint: its folder, seconds of verifying and loading."""
    READY = "ready"
    """All is built and loaded, the first step begins: steps of the run, seconds since the start of the process and of
    each stage since (:class:`motionmae.training.step_timer.StartupTimer`)."""
    FIRST_STEP = "first_step"
    """The first step of the attempt is taken: its seconds, and those since the start of the process."""
    CHECKPOINT = "checkpoint"
    """One was committed: path, bytes, ``seconds`` from request to commit, ``blocking`` of them that held up training
    (``waited`` of these for the write before)."""
    CHECKPOINT_FAILED = "checkpoint_failed"
    """One could not be written, for how many saves in a row; training goes on."""
    CHECKPOINT_DAMAGED = "checkpoint_damaged"
    """One failed its verification and was passed over."""
    PREEMPTION = "preemption"
    """A signal asked the run to stop; it saves and does."""
    CORRUPT_SAMPLE = "corrupt_sample"
    """Samples could not be read and were replaced: new ones by reason, all so far."""
    HANG = "hang"
    """The watchdog ends this rank: what took too long, the file of its stacks."""
    NONFINITE = "nonfinite"
    """A step was skipped because of its loss or gradient: which, on which ranks, the samples."""
    ROLLBACK = "rollback"
    """Too many steps were skipped: the run is at an earlier checkpoint, and goes on with the samples after them."""
    PICTURE = "picture"
    """What the heads rebuild was drawn from the checkpoint of this step: path in the run folder, or the error."""
    FINISH = "finish"
    """The last step was taken and saved."""
    STOP = "stop"
    """The attempt ends early: a :class:`motionmae.runs.end_reason.EndReason`, and the error if there is one."""
    FAILURE = "failure"
    """The batch script saw the attempt fail: the reason, the node at fault, excluded nodes, whether it is retried."""


_OF_A_CHECKPOINT = (Kind.CHECKPOINT.value, Kind.CHECKPOINT_FAILED.value, Kind.PICTURE.value)
"""Their step is the checkpoint's: when they are announced, the run may be far beyond it."""


class Sink(Protocol):
    """Somewhere events and metrics go; monitoring, W&B and the like implement it. OSErrors are logged, not raised."""

    def event(self, row: Row) -> None:
        """Take an event: ``attempt``, ``kind``, ``step``, ``time`` and the kind's own fields."""

    def metrics(self, row: Row) -> None:
        """Take a metrics row (fields: see :func:`motionmae.training.callbacks.metrics.StepMetrics`)."""

    def close(self) -> None:
        """Flush and let go."""


class JsonLines:
    """The sink that writes ``events.jsonl`` and ``metrics.jsonl``."""

    def __init__(self, events: Path, metrics: Path) -> None:
        self._events, self._metrics = LineFile(events), LineFile(metrics)

    def event(self, row: Row) -> None:
        """Append an event."""
        self._events.append(row)

    def metrics(self, row: Row) -> None:
        """Append a metrics row."""
        self._metrics.append(row)

    def close(self) -> None:
        """Close both files."""
        self._events.close()
        self._metrics.close()


class EventLog:
    """Stamps rows with attempt and time and hands them to every sink; without sinks (ranks but 0) does nothing.

    A sink that fails (full disk, lost mount) is warned about once and kept: recording never stops training. Rows may
    come from several threads.

    Args:
        attempt: name of this life of the run.
        sinks: who is told.
        check: called before each row; what it raises, but for an OSError, keeps the row from being written.
    """

    def __init__(self, attempt: str, sinks: Iterable[Sink] = (), check: Callable[[], None] | None = None) -> None:
        self.attempt = attempt
        self.last_step = 0
        """Steps done, as far as anybody has said."""
        self._sinks = list(sinks)
        self._check = check
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def add(self, sink: Sink) -> None:
        """Tell ``sink`` everything from now on."""
        self._sinks.append(sink)

    def event(self, kind: Kind, step: int, **fields: Any) -> None:
        """Record that something happened when ``step`` steps were done."""
        row = {"attempt": self.attempt, "kind": kind.value, "step": step, "time": time.time(), **fields}
        self._tell("event", row)

    def metrics(self, row: Row) -> None:
        """Record how training goes."""
        self._tell("metrics", {"attempt": self.attempt, **row, "time": time.time()})

    def close(self) -> None:
        """Close the sinks; what one cannot flush is warned about, and keeps no other from closing."""
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                self._warn(type(sink).__name__, error)

    def _tell(self, what: str, row: Row) -> None:
        if row.get("kind") not in _OF_A_CHECKPOINT:
            self.last_step = row["step"]
        row = {key: _plain(value) for key, value in row.items()}
        if not self._sinks:
            return
        with self._lock:
            try:
                if self._check:
                    self._check()
            except OSError as error:  # whose the files are cannot be found out
                self._warn("the run folder", error)
                return
            for sink in self._sinks:
                try:
                    getattr(sink, what)(row)
                except OSError as error:
                    self._warn(type(sink).__name__, error)

    def _warn(self, who: str, error: OSError) -> None:
        if who not in self._failed:
            logger.warning("%s fails (%s), rows are lost; training goes on", who, error)
        self._failed.add(who)


class LineFile:
    """A file of JSON objects, one a line, to which each line is appended by a single write.

    A process that is killed leaves at most its last line torn. The next one to open the file starts a new line, and
    :func:`read_rows` passes over the torn one.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, row: Row) -> None:
        """Add a line.

        Raises:
            OSError: if it could not be written, or only in part.
        """
        line = (b"\n" if self._torn else b"") + json.dumps(row).encode() + b"\n"
        self._torn = True
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def process_age() -> float:
    """Seconds since this process was started, which went into imports and waiting for peers; 0 if not on Linux."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON lines file, oldest first, without torn lines; none if there is no file."""
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def current_rows(path: Path) -> list[Row]:
    """The metrics rows that count, one a step, steps rising: what a later attempt repeated replaces the former."""
    rows: list[Row] = []
    for row in read_rows(path):
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows


def idle_category(row: Row) -> str:
    """Badput category, ``queue_wait`` or ``downtime``, of the idle time after an event.

    Args:
        row: an event ``stop``, ``finish``, ``submitted`` or ``failure``.
    """
    if row["kind"] == Kind.STOP:
        return EndReason(row["reason"]).badput
    return "queue_wait" if row["kind"] == Kind.SUBMITTED or row.get("again") else "downtime"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Events and metrics rows of a run, and the sinks that receive them. JSON lines are the source of truth.

Each row has the id of the attempt that wrote it. A resumed run repeats the steps after its checkpoint, so the files
contain some steps twice: :func:`current_rows` returns the rows that count. Only rank 0 writes the files.
"""

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class Kind(StrEnum):
    """Kinds of events. The members' docstrings name the fields besides ``attempt``, ``kind``, ``step`` and ``time``."""

    SUBMITTED = "submitted"
    """The run was submitted to a scheduler. The event belongs to no attempt."""
    START = "start"
    """An attempt begins: world size, hosts in rank order, age of the process in seconds, commit of the code."""
    RESUME = "resume"
    """The attempt loaded a checkpoint: folder of the checkpoint, seconds of verifying and loading."""
    READY = "ready"
    """The first step begins: total steps, seconds since the process start and of each stage
    (:class:`motionmae.training.step_timer.StartupTimer`)."""
    FIRST_STEP = "first_step"
    """The attempt took its first step: seconds of the step, and seconds since the process start."""
    CHECKPOINT = "checkpoint"
    """A checkpoint was committed: path, bytes, ``seconds`` from request to commit, ``blocking`` seconds of training
    (``waited`` of them for the previous write)."""
    CHECKPOINT_FAILED = "checkpoint_failed"
    """A checkpoint could not be written: the error, failed saves in a row. Training continues."""
    CHECKPOINT_DAMAGED = "checkpoint_damaged"
    """A checkpoint failed its verification and was skipped."""
    PREEMPTION = "preemption"
    """A signal or the stop file asked the run to stop. The run saves and stops."""
    CORRUPT_SAMPLE = "corrupt_sample"
    """Samples could not be read and were replaced: new samples with reasons, counts of all so far."""
    HANG = "hang"
    """The watchdog ends this rank: the work that exceeded its limit, the file of the stacks."""
    NONFINITE = "nonfinite"
    """A step was skipped as non-finite: loss or gradient, ranks, samples."""
    ROLLBACK = "rollback"
    """Too many steps were skipped. The run returned to an earlier checkpoint and continues with later samples."""
    PICTURE = "picture"
    """Reconstructions were drawn from this step's checkpoint: path in the run directory, or the error."""
    FINISH = "finish"
    """The last step was taken and saved."""
    STOP = "stop"
    """The attempt ends early: a :class:`motionmae.runs.end_reason.EndReason`, and the error if there is one."""
    FAILURE = "failure"
    """The batch script saw the attempt fail: the reason, node at fault, excluded nodes, whether the job is retried."""


_OF_A_CHECKPOINT = (Kind.CHECKPOINT, Kind.CHECKPOINT_FAILED, Kind.PICTURE)
"""Events whose ``step`` is the checkpoint's step, which may be older than the current step."""


class Sink(Protocol):
    """Destination of events and metrics, such as monitoring or W&B. An OSError of a sink is logged and not raised."""

    def event(self, row: Row) -> None:
        """Receive an event."""

    def metrics(self, row: Row) -> None:
        """Receive a metrics row, see :class:`motionmae.training.callbacks.metrics.StepMetrics`."""

    def close(self) -> None:
        """Flush and close."""


class JsonLines:
    """Sink that writes ``events.jsonl`` and ``metrics.jsonl``."""

    def __init__(self, events: Path, metrics: Path) -> None:
        self._events, self._metrics = LineFile(events), LineFile(metrics)

    def event(self, row: Row) -> None:
        self._events.append(row)

    def metrics(self, row: Row) -> None:
        self._metrics.append(row)

    def close(self) -> None:
        self._events.close()
        self._metrics.close()


class EventLog:
    """Log that adds attempt and time to each row and passes the row to every sink. Several threads may use the log.

    The failure of a sink (full disk, lost mount) is logged once, and the sink is kept: logging never stops training.

    Args:
        attempt: id of the attempt.
        check: called before each row. An exception other than an OSError keeps the row from being written.
    """

    def __init__(self, attempt: str, sinks: Iterable[Sink] = (), check: Callable[[], None] | None = None) -> None:
        self.attempt = attempt
        self.last_step = 0
        """Step of the newest row."""
        self._sinks = list(sinks)
        self._check = check
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def add(self, sink: Sink) -> None:
        """Pass all further rows to ``sink``."""
        self._sinks.append(sink)

    def event(self, kind: Kind, step: int, **fields: Any) -> None:
        """Record an event after ``step`` steps."""
        row = {"attempt": self.attempt, "kind": kind.value, "step": step, "time": time.time(), **fields}
        self._record("event", row)

    def metrics(self, row: Row) -> None:
        """Record a metrics row."""
        self._record("metrics", {"attempt": self.attempt, **row, "time": time.time()})

    def close(self) -> None:
        """Close all sinks, and log the ones that cannot flush."""
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                self._warn(type(sink).__name__, error)

    def _record(self, method: str, row: Row) -> None:
        if row.get("kind") not in _OF_A_CHECKPOINT:
            self.last_step = row["step"]
        row = {key: _plain(value) for key, value in row.items()}
        if not self._sinks:
            return
        with self._lock:
            try:
                if self._check:
                    self._check()
            except OSError as error:  # the lease could not be read
                self._warn("the run directory", error)
                return
            for sink in self._sinks:
                try:
                    getattr(sink, method)(row)
                except OSError as error:
                    self._warn(type(sink).__name__, error)

    def _warn(self, sink: str, error: OSError) -> None:
        if sink not in self._failed:
            logger.warning("%s fails (%s), rows are lost; training continues", sink, error)
        self._failed.add(sink)


class LineFile:
    """File to which JSON objects are appended, one per line. Each line is a single write.

    A killed process leaves at most one torn line. The next process starts a new line, and :func:`read_rows` skips the
    torn one.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, row: Row) -> None:
        """Append a line.

        Raises:
            OSError: if the line was not written completely.
        """
        line = (b"\n" if self._torn else b"") + json.dumps(row).encode() + b"\n"
        self._torn = True
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def close(self) -> None:
        os.close(self._descriptor)


def append_row(path: Path, **fields: Any) -> None:
    """Append one row with the current time to a JSON lines file."""
    with closing(LineFile(path)) as file:
        file.append({**fields, "time": time.time()})


def process_age() -> float:
    """Return the seconds since this process started; 0 if not on Linux."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def parse_rows(lines: Iterable[str | bytes]) -> Iterator[Row]:
    """Yield the rows of JSON lines, and skip torn lines."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON lines file, oldest first, and skip torn lines; none if the file is absent."""
    if path.exists():
        with path.open(errors="replace") as file:
            yield from parse_rows(file)


def current_rows(path: Path) -> list[Row]:
    """Return one metrics row per logged step, in order of steps. A later attempt's row replaces earlier ones."""
    current: list[Row] = []
    for row in read_rows(path):
        while current and current[-1]["step"] >= row["step"]:
            current.pop()
        current.append(row)
    return current


def _plain(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

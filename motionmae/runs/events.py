"""Events and metrics rows of a run, and the sinks that receive them. JSON lines are the source of truth.

Each row has the id of the attempt that wrote it. A resumed run repeats the steps after its checkpoint, so the files
contain some steps twice: :func:`drop_repeated` returns the rows that count. Only rank 0 writes the files.
"""

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from motionmae.text import get_logger

logger = get_logger(__name__)

Row = dict[str, Any]

SOURCE_SAMPLES, SOURCE_PASSES = "source_samples/", "source_passes/"
"""Beginnings of the keys of a metrics row with the samples drawn from each source of a mixture, and the passes through
it, since the run began. The name of the source follows."""


class Kind(StrEnum):
    """Kinds of events. The comments name the fields besides ``attempt``, ``kind``, ``step`` and ``time``."""

    SUBMITTED = "submitted"  # the run was submitted to a scheduler; the event belongs to no attempt
    START = "start"  # an attempt begins: world size, hosts in rank order, age of the process in seconds, commit
    # The attempt loaded a checkpoint: folder, `source` (memory or disk), and the seconds of verifying and loading.
    RESUME = "resume"
    READY = "ready"  # the first step begins: total steps, seconds since the process start and of each stage
    FIRST_STEP = "first_step"  # the attempt took its first step: seconds of the step and since the process start
    # A checkpoint was committed: path, bytes, `seconds` from request to commit, `blocking` seconds of training, and
    # `waited`, the part of `blocking` spent waiting for the previous write.
    CHECKPOINT = "checkpoint"
    CHECKPOINT_FAILED = "checkpoint_failed"  # a checkpoint could not be written: the error, failed saves in a row
    CHECKPOINT_DAMAGED = "checkpoint_damaged"  # a checkpoint failed its verification and was skipped
    PREEMPTION = "preemption"  # a signal or the stop file asked the run to stop; the run saves and stops
    CORRUPT_SAMPLE = "corrupt_sample"  # samples could not be read: new samples with reasons, counts of all so far
    HANG = "hang"  # the watchdog ends this rank: the work that exceeded its limit, the file of the stacks
    NONFINITE = "nonfinite"  # a step was skipped as non-finite: loss or gradient, ranks, samples
    ROLLBACK = "rollback"  # after too many skipped steps, the run returned to an earlier checkpoint
    # Reconstructions from this step's checkpoint, or a confusion matrix: path in the run folder, title, or the error.
    PICTURE = "picture"
    # Held-out videos were measured: loss and other figures, videos, seconds, whether it is the best, or the error.
    VALIDATION = "validation"
    INIT = "init"  # initial weights were loaded: their path and fingerprint, what was loaded and what was not
    FINISH = "finish"  # the last step was taken and saved
    STOP = "stop"  # the attempt ends early: an EndReason, and the error if there is one
    FAILURE = "failure"  # the batch script saw a failure: reason, node at fault, excluded nodes, whether it retries


FAULTS = {
    Kind.NONFINITE: "step skipped", Kind.CORRUPT_SAMPLE: "corrupt samples", Kind.CHECKPOINT_FAILED: "save failed",
    Kind.CHECKPOINT_DAMAGED: "damaged checkpoint skipped", Kind.HANG: "hung", Kind.ROLLBACK: "rolled back",
    Kind.FAILURE: "attempt failed",
}  # fmt: skip
"""Events about a fault, and what people call it."""


class Phase(StrEnum):
    """Phases of a training step on one rank. The metrics row has the seconds of each phase."""

    DATA_WAIT = "data_wait"  # waiting for a micro-batch
    FORWARD = "forward"  # copy to the device and forward pass
    BACKWARD = "backward"  # backward pass and gradient reduction, in which ranks wait for each other
    OPTIMIZER = "optimizer"  # parameter update
    CHECKPOINT = "checkpoint"  # the part of a save that blocks training
    MEMORY_COPY = "memory_copy"  # the part of a memory copy that blocks training
    VALIDATION = "validation"  # validation, which blocks training
    OTHER = "other"  # schedule, signal checks and metrics


OUTSIDE_STEPS = (Phase.CHECKPOINT, Phase.MEMORY_COPY, Phase.VALIDATION)
"""Phases between steps, which do not count as time of a step."""

# Events whose `step` is the checkpoint's step, which may be older than the current step.
_OF_A_CHECKPOINT = (Kind.CHECKPOINT, Kind.CHECKPOINT_FAILED, Kind.PICTURE)


class Sink(Protocol):
    """Destination of events and metrics, such as monitoring or W&B. An OSError of a sink is logged and not raised.

    A class that derives from this one may leave out ``metrics`` and ``close``.
    """

    def event(self, row: Row) -> None: ...

    def metrics(self, row: Row) -> None:
        return

    def close(self) -> None:
        return


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
        check: called before each row. If it raises, the row is not written. An OSError is logged, others are raised.
    """

    def __init__(self, attempt: str, sinks: Iterable[Sink] = (), check: Callable[[], None] | None = None) -> None:
        self.attempt = attempt
        self.last_step = 0  # step of the newest row
        self._sinks = list(sinks)
        self._check = check
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def event(self, kind: Kind, step: int, **fields: Any) -> None:
        """Record an event after ``step`` steps."""
        self._record("event", {"kind": kind.value, "step": step, **fields})

    def metrics(self, row: Row) -> None:
        self._record("metrics", row)

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
        row = {key: _plain(value) for key, value in {"attempt": self.attempt, **row, "time": time.time()}.items()}
        if not self._sinks:
            return
        with self._lock:
            try:
                if self._check:
                    self._check()
            except OSError as error:  # the lease could not be read
                self._warn("the run folder", error)
                return
            for sink in self._sinks:
                try:
                    getattr(sink, method)(row)
                except OSError as error:
                    self._warn(type(sink).__name__, error)

    def _warn(self, sink: str, error: OSError) -> None:
        if sink not in self._failed:
            logger.warning("%s cannot take rows (%s), which are lost; training continues", sink, error)
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
        """Append a line, or raise an OSError if the line could not be written completely."""
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


_age_from: float | None = None


def count_age_from_now() -> None:
    """Let :func:`process_age` count from now: the attempt of a standby process begins when it takes over."""
    global _age_from
    _age_from = time.monotonic()


def process_age() -> float:
    """Return the seconds since this process started, or since it took over; 0 if not on Linux."""
    if _age_from is not None:
        return time.monotonic() - _age_from
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def parse_rows(lines: Iterable[str | bytes]) -> Iterator[Row]:
    """Yield the rows of JSON lines without torn lines and lines of other content."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON lines file without torn lines, oldest first; none if the file is absent."""
    if path.is_file():  # a device has no end
        with path.open(errors="replace") as file:
            yield from parse_rows(file)


def drop_repeated(rows: Iterable[Row]) -> list[Row]:
    """Return one metrics row per logged step, in order of steps. The row of a later attempt replaces earlier rows."""
    current: list[Row] = []
    for row in rows:
        while current and current[-1]["step"] >= row["step"]:
            current.pop()
        current.append(row)
    return current


def _plain(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

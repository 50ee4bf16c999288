"""Summaries of many runs, each read from the ends of its files, so that hundreds of long runs take a second."""

import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import FAULTS, Kind, Row, parse_rows
from motionmae.runs.history import AttemptRecord, AttemptTracker, RunState
from motionmae.runs.row_schema import fault_of

_TAILS = (1 << 16, 1 << 19, 1 << 22)
"""Bytes read from the end of a file, more where they do not hold the start of the newest attempt."""
_SAVED = f'"kind": "{Kind.CHECKPOINT}"'.encode()  # as LineFile writes it
_RECENT = 5  # rows of metrics.jsonl in the pace
_DEPTH = 5  # levels of folders below the given one that are searched
_THREADS = 16  # files on a network file system are slow to open and not to read


@dataclass(frozen=True)
class RunSummary:
    """State of a run. None and empty strings stand for what its files do not say."""

    name: str  # path below the folder that was searched
    folder: str
    state: RunState
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    step_seconds: float | None = None  # mean over the last logged rows of the newest attempt
    clips_per_second: float | None = None
    eta_seconds: float | None = None  # of a run that trains
    hosts: tuple[str, ...] = ()
    ranks: int | None = None
    attempt: int | None = None
    job: str = ""  # Slurm's job id
    last_sign: float | None = None  # time of the newest row, in seconds since the epoch
    fault: str = ""  # newest fault or error
    fault_time: float | None = None
    note: str = ""  # why a file could not be read


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in ``folder``, or ``folder`` itself.

    A link to a run counts. Other links and hidden folders are not entered.
    """
    return sorted(_find(folder, _DEPTH))


def _find(folder: Path, depth: int) -> Iterator[Path]:
    if RunFolder(folder).events.is_file():
        yield folder
        return
    try:
        with os.scandir(folder) as entries:
            below = [(entry.name, entry.is_symlink()) for entry in entries if entry.is_dir() and entry.name[0] != "."]
    except OSError:  # a folder of another user
        return
    for name, is_link in below if depth else ():
        yield from _find(folder / name, 0 if is_link else depth - 1)


def summarise_runs(folder: Path, now: float | None = None) -> list[RunSummary]:
    """Return a summary of every run in ``folder``: active runs first, then the newest."""
    moment = time.time() if now is None else now
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda run: summarise(run, folder, moment), find_runs(folder)))
    active = (RunState.TRAINING, RunState.STARTING, RunState.SILENT, RunState.QUEUED, RunState.REQUEUED)
    return sorted(found, key=lambda run: (run.state not in active, -(run.last_sign or 0), run.name))


def summarise(run: Path, root: Path, now: float) -> RunSummary:
    """Return the summary of a run. Damaged rows are left out; a file that cannot be read leads to a note."""
    files = RunFolder(run)
    name = run.relative_to(root).as_posix() if run != root else run.resolve().name
    try:
        events = _events(files.events)
        metrics = _newest_rows(files.metrics)
    except OSError as error:
        return RunSummary(name, str(run), RunState.SILENT, note=f"cannot be read: {error.strerror}")
    tracker = AttemptTracker(events)
    last = tracker.attempts[-1] if tracker.attempts else None
    totals = [row["total_steps"] for row in events if row["kind"] == Kind.READY]
    newest = max([row["time"] for row in (*events[-1:], *metrics[-1:])], default=None)
    fault, fault_time = _newest_fault(events)
    if last is None:
        state, note = (RunState.QUEUED, "") if events else (RunState.SILENT, f"{files.events.name} has no valid event")
        return RunSummary(name, str(run), state, last_sign=newest, fault=fault, fault_time=fault_time, note=note)
    own = [row for row in metrics if row["attempt"] == last.attempt.id]
    last.last_sign = max([last.last_sign, *(row["time"] for row in own)])
    state = last.state(now)
    if state in (RunState.STARTING, RunState.TRAINING, RunState.SILENT) and (gone := _gone(last, events)):
        state, fault, fault_time = RunState.FAILED, gone, last.last_sign
    step, total = _step(last, events, own, metrics), totals[-1] if totals else None
    pace = sum(row["step_seconds"] for row in own) / len(own) if own else None
    trains = state is RunState.TRAINING and None not in (pace, total, step)
    return RunSummary(
        name=name,
        folder=str(run),
        state=state,
        step=step,
        total_steps=total,
        epoch=metrics[-1]["epoch"] if metrics else None,
        loss=metrics[-1].get("loss") if metrics else None,
        step_seconds=pace,
        clips_per_second=own[-1]["clips_per_second"] if own else None,
        eta_seconds=max(total - step, 0) * pace if trains else None,  # type: ignore[operator]  # none is None
        hosts=tuple(last.hosts),
        ranks=last.world,
        attempt=last.attempt.number or None,
        job=last.attempt.job,
        last_sign=newest,
        fault=fault,
        fault_time=fault_time,
    )


def _step(last: AttemptRecord, events: Sequence[Row], own: Sequence[Row], metrics: Sequence[Row]) -> int | None:
    """Return the last known step: a resumed run is at its checkpoint, and not where the earlier attempt ended."""
    if last.ready is None:
        return metrics[-1]["step"] if metrics else None
    of_attempt = (row for row in events if row["attempt"] == last.attempt.id)
    ends = [row["step"] for row in of_attempt if row["kind"] in (Kind.FINISH, Kind.STOP)]
    return max([last.first_step, *(row["step"] for row in own[-1:]), *ends])


def _gone(last: AttemptRecord, events: Sequence[Row]) -> str:
    """Return a clause if the attempt ran on this machine and its process has ended; else an empty string."""
    start = next(row for row in reversed(events) if row["kind"] == Kind.START)
    pid = start.get("pid")
    if last.attempt.host != socket.gethostname() or not isinstance(pid, int) or Path(f"/proc/{pid}").exists():
        return ""
    return f"killed: process {pid} ended without a message"


def _newest_fault(events: Sequence[Row]) -> tuple[str, float | None]:
    """Return the newest fault, error, or end that nobody asked for; an empty string if there is none."""
    for row in reversed(events):
        kind = row["kind"]
        text = ""
        if kind in (Kind.STOP, Kind.FAILURE):
            reason = EndReason(row["reason"])
            text = "" if reason.saved else str(row.get("error") or reason.description)
            node = row.get("node")
            text += f" ({node})" if text and isinstance(node, str) and node else ""
        elif kind in FAULTS:
            detail = row.get("error") or row.get("cause")
            text = FAULTS[Kind(kind)] + (f": {detail}" if detail else "")
        if text:
            return text, row["time"]
    return "", None


def _events(path: Path) -> list[Row]:
    """Return the valid events at the end of ``path``, from the start of the newest attempt or earlier."""
    rows: list[Row] = []
    for size in _TAILS:
        lines, whole = _tail(path, size)
        # most rows are about checkpoints, and of these only the last row may say something
        telling = [line for line in lines[:-1] if _SAVED not in line] + lines[-1:]
        rows = [row for row in parse_rows(telling) if not fault_of(row, is_event=True)]
        if whole or any(row["kind"] == Kind.START for row in rows):
            break
    return rows


def _newest_rows(path: Path) -> list[Row]:
    """Return the last valid rows of metrics.jsonl, oldest first."""
    rows: list[Row] = []
    for size in _TAILS:
        lines, whole = _tail(path, size)
        valid = (row for row in parse_rows(reversed(lines)) if not fault_of(row, is_event=False))
        rows = list(islice(valid, _RECENT))
        if whole or len(rows) == _RECENT:
            break
    return rows[::-1]


def _tail(path: Path, size: int) -> tuple[list[bytes], bool]:
    """Return the whole lines in the last ``size`` bytes of a file, and whether these are all of its lines."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block without it
    except FileNotFoundError:
        return [], True
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return [], True
        file.seek(max(status.st_size - size, 0))
        content = file.read(size)
    whole = status.st_size <= size
    lines = content.splitlines()
    return (lines if whole else lines[1:]), whole

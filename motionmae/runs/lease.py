"""Lease on the run folder. Only the newest attempt may write; an older attempt that is alive must stop (fencing).

The ranks of a node that lost the network keep running beside the attempt that Slurm starts on other nodes. Therefore
rank 0 takes the lease at its start: rank 0 replaces ``RUN/lease.json``. Every rank checks that file before the rank
writes to the run folder (:meth:`Lease.check`). An NFS client asks its server when it opens a file, so the check sees a
lease that was taken on another node.

A newer lease can appear between a check and the write. Then at most one row or one whole checkpoint of the older
attempt is written, and never a torn one.

The file also has the run's identity, which survives every requeue, and the positions at which attempts began to train.
They tell whether a state in the memory of a node still belongs to the run's course (:meth:`Lease.has_passed`): what an
attempt computed beyond the start of a newer attempt was computed again, perhaps with other settings.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, StringConstraints

from motionmae import locks
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, JsonModel, load_json
from motionmae.runs.checkpoint_manifest import Count
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.history import Attempt, RunHistory

FILE = "lease.json"
_LOCK = ".lease.lock"
LOCK_TIMEOUT = 120.0  # seconds to wait for another attempt; NFS releases the lock of a dead machine sooner
ShortText = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,255}$")]  # without control characters
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Begun(NamedTuple):
    """Attempt that began to train."""

    number: Count
    position: Count  # steps of data that it had when it began, as in a checkpoint's manifest


class _Holder(JsonModel, extra="ignore"):
    """Content of lease.json: the newest attempt and its process."""

    number: Annotated[int, Field(ge=0, lt=2**31)]
    id: ShortText
    host: ShortText
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    time: Annotated[float, Field(ge=0, lt=2**33)]  # seconds since the epoch
    run: ShortText = ""
    begun: tuple[Begun, ...] = ()


@dataclass(frozen=True)
class Lease:
    """Lease of an attempt on the run folder."""

    file: Path
    attempt: Attempt
    run: str = ""  # identity of the run: the id of its first attempt
    begun: tuple[Begun, ...] = ()  # starts of older attempts, as far as a later one did not begin at or before them

    def check(self) -> None:
        """Check that this attempt still holds the lease.

        Raises:
            LeaseLost: a newer attempt has taken the lease.
            OSError: the lease cannot be read. Then nothing may be written either.
        """
        holder = _read(self.file)
        if holder.id != self.attempt.id:
            raise LeaseLost(
                f"attempt {holder.number} of this run, started on {holder.host} at "
                f"{time.strftime('%H:%M:%S UTC', time.gmtime(holder.time))}, has taken over {self.file.parent}; "
                f"attempt {self.attempt.number} on {socket.gethostname()} writes nothing more and ends"
            )

    def has_passed(self, number: int, position: int) -> bool:
        """Return whether a state of attempt ``number`` at ``position`` was computed again by a newer attempt."""
        return any(begun.number > number and begun.position < position for begun in self.begun)

    def begin(self, position: int) -> None:
        """Record that this attempt begins to train at ``position``, on rank 0, or raise a UserError."""
        with _reported(self.file), _locked(self.file.with_name(_LOCK)):
            self.check()
            holder = _read(self.file)
            older = [each for each in holder.begun if each.position < position]
            _write(replace(self, begun=(*older, Begun(self.attempt.number, position))))


def acquire_lease(folder: Path) -> Lease:
    """Begin a new attempt of the run in ``folder``, on rank 0, or raise a UserError.

    Older attempts then fail their next check.
    """
    file = folder / FILE
    with _reported(file), _locked(folder / _LOCK):
        former = _read(file) if file.exists() else None
        attempt = Attempt.begin(former.number + 1 if former else 1)
        run, begun = (former.run, former.begun) if former else ("", ())
        lease = Lease(file, attempt, run or attempt.id, begun)
        _write(lease)
    return lease


def run_identity(folder: Path) -> str:
    """Return the identity of the run in ``folder``; empty if no attempt has begun, or lease.json cannot be read."""
    try:
        return load_json(folder / FILE, _Holder).run
    except (OSError, InvalidJsonError):
        return ""


def current_holder(folder: Path) -> str:
    """Describe the attempt that may be writing to ``folder`` now, as a clause; empty if no attempt can be.

    An attempt is over if events.jsonl has its end, or if its process on this machine is gone.
    """
    file = folder / FILE
    if not file.exists():
        return ""
    holder = _read(file)
    here = holder.host == socket.gethostname()
    if RunHistory(folder).ended(holder.id) or (here and not Path(f"/proc/{holder.pid}").exists()):
        return ""
    verb = "runs" if here else "may run"
    return f"attempt {holder.number} of this run {verb} as process {holder.pid} on {holder.host}"


def _write(lease: Lease) -> None:
    holder = {**asdict(lease.attempt), "pid": os.getpid(), "time": time.time(), "run": lease.run, "begun": lease.begun}
    write_atomically(lease.file, json.dumps(holder, indent=1).encode())


@contextmanager
def _reported(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}): check that {file.parent} has free space and belongs to you"
        ) from error


def _read(file: Path) -> _Holder:
    try:
        return load_json(file, _Holder)
    except InvalidJsonError as error:
        raise UserError(
            f"{file} is damaged ({error}): make sure that no job trains in its folder, then delete the file"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock under which leases are taken. On a file system without locks, no lock is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            if not locks.acquire(descriptor, timeout=LOCK_TIMEOUT, posix=True):
                raise TimeoutError(errno.ETIMEDOUT, f"another process holds {path.name}")
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)

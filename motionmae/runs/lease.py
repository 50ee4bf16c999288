"""Which life of a run owns its folder. The newest start does; an older one that still lives must write nothing more.

A node that is cut off the network keeps its rank running beside the attempt that Slurm starts elsewhere. So rank 0
leases the run folder when it starts, by replacing ``RUN/lease.json``, and everything written there afterwards,
by whatever rank, is preceded by a look at that file (:meth:`Lease.check`). Opening a file makes an NFS client
ask its server, so the look sees a lease made on another node.

Between the look and the write a newer lease can still come in; this takes a lease within microseconds of a rename and
leaves at worst a row or a whole checkpoint of the older life, never a torn one.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.runs.attempt import Attempt
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.events import Kind, read_rows

FILE = "lease.json"
"""Name of the file in the run folder that says whose it is."""

LOCK_SECONDS = 120.0
"""How long to wait for another lease: longer than NFS takes to drop the lock of a machine that died in the middle."""


@dataclass(frozen=True)
class Lease:
    """The lease of one life of a run, an attempt."""

    file: Path
    """The run folder's FILE."""
    attempt: Attempt
    """The holder."""

    def check(self) -> None:
        """Make sure that the run folder is still this attempt's.

        Raises:
            LeaseLost: if a newer one has claimed it.
            OSError: if that cannot be found out, so that nothing is written on a guess.
        """
        owner = _read(self.file)
        if owner["id"] != self.attempt.id:
            raise LeaseLost(
                f"attempt {owner['number']} of this run, started on {owner['host']} at "
                f"{time.strftime('%H:%M:%S UTC', time.gmtime(owner['time']))}, has taken over {self.file.parent}; "
                f"attempt {self.attempt.number} on {socket.gethostname()} writes nothing more and ends"
            )


def acquire_lease(folder: Path) -> Lease:
    """Take over the run in ``folder``, on rank 0: from now on every older attempt is refused.

    Raises:
        UserError: if the lease file is damaged or cannot be written.
    """
    file = folder / FILE
    try:
        with _locked(folder / ".lease.lock"):
            number = _read(file)["number"] + 1 if file.exists() else 1
            attempt = Attempt.begin(number)
            owner = {**asdict(attempt), "pid": os.getpid(), "time": time.time()}
            write_atomically(file, json.dumps(owner, indent=1).encode())
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}): see that {folder} has room and is yours"
        ) from error
    return Lease(file, attempt)


def current_holder(folder: Path) -> str:
    """Who may be writing to the run in ``folder`` right now; empty if surely nobody does.

    An attempt is over if it said so in events.jsonl, or if it was on this machine and its process is gone.
    """
    file = folder / FILE
    if not file.exists():
        return ""
    owner = _read(file)
    for row in read_rows(folder / "events.jsonl"):
        if row["attempt"] == owner["id"] and row["kind"] in (Kind.STOP.value, Kind.FINISH.value):
            return ""
    here = owner["host"] == socket.gethostname()
    if here and not Path(f"/proc/{owner['pid']}").exists():
        return ""
    certainty = "runs" if here else "may run"
    return f"attempt {owner['number']} of this run {certainty} as process {owner['pid']} on {owner['host']}"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        return {key: content[key] for key in ("number", "id", "host", "pid", "time")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}): see that no job trains in its folder, then delete it"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a POSIX lock, which NFS and Lustre know too; a file system without locks goes without."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN) and time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
            break
        yield
    finally:
        os.close(descriptor)

"""Which job a run folder belongs to, and what has become of it.

``RUN/job.json`` names the job that was submitted last. ``RUN/job.lock`` is locked while a submission is under way and,
on this machine (``--cluster local``), for as long as the job's controller lives; the system drops the lock with the
process that held it, so nobody has to clean up after a crash.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import write_atomically
from slurm import scontrol
from slurm.scontrol import field

LOCK_SECONDS = 5.0
"""How long to wait for somebody else's submission or look at the lock."""
_ENDED = (
    "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
)  # fmt: skip
"""Slurm's names of the states of a job that ended."""


@dataclass(frozen=True)
class JobRecord:
    """The job that a run folder was submitted as."""

    cluster: str
    """slurm or local."""
    job_id: str
    """Slurm's job id, or the process id of the local controller."""
    log: str
    """What rank 0 prints, over all attempts of the job."""
    code: str
    """Folder of the code snapshot that the job runs."""
    submitted: float
    """When, in seconds since the epoch."""
    exit_code: int | None = None
    """How a local job ended; Slurm remembers its own."""

    def write(self, run: Path) -> None:
        """Make this the job of the run folder ``run``."""
        write_atomically(run / "job.json", json.dumps(asdict(self), indent=1).encode())

    def ended(self, exit_code: int) -> "JobRecord":
        """Return this record with the exit status of the job."""
        return replace(self, exit_code=exit_code)

    @staticmethod
    def read(run: Path) -> "JobRecord | None":
        """The job that ``run`` was submitted as last; None if it never was.

        Raises:
            UserError: if job.json is damaged.
        """
        try:
            return JobRecord(**json.loads((run / "job.json").read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{run / 'job.json'} is damaged ({error}): see that no job trains in {run}, then delete the file"
            ) from error


@dataclass(frozen=True)
class JobState:
    """Where a job stands: one of Slurm's names for it, and what more is known."""

    name: str
    """PENDING, RUNNING, COMPLETED, FAILED, ...; GONE if nobody remembers the job."""
    detail: str = ""
    """Nodes, or the reason for waiting."""
    restarts: int = 0
    """How often the job was requeued."""
    exit_code: int | None = None
    """Exit status, once it has ended and as far as it is known; 128 + the signal's number for a killed job."""

    @property
    def active(self) -> bool:
        """Whether the job runs, or may run (again) by itself."""
        return self.name not in _ENDED and self.name != "GONE"


def state_of(record: JobRecord, run: Path) -> JobState:
    """Ask what has become of the job.

    Raises:
        UserError: if Slurm does not answer.
    """
    return _slurm_state(record.job_id) if record.cluster == "slurm" else _local_state(run)


@contextmanager
def submission_lock(run: Path) -> Iterator[int]:
    """Hold the run folder's lock; yields its file descriptor, which a child process may inherit to keep the lock.

    Raises:
        UserError: if another process keeps the lock.
    """
    run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run / "job.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor, LOCK_SECONDS):
            raise UserError(f"{run} is being submitted, or trains, on this machine: see {run / 'job.json'}")
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


def _local_state(run: Path) -> JobState:
    descriptor = os.open(run / "job.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor, 0):
            return JobState("RUNNING", "on this machine")
    finally:
        os.close(descriptor)
    record = JobRecord.read(run)  # after the lock was seen free: the controller writes its end before it lets go
    exit_code = None if record is None else record.exit_code
    if exit_code is None:
        return JobState("GONE", "its controller was killed")
    return JobState("COMPLETED" if exit_code == 0 else "FAILED", exit_code=exit_code)


def _slurm_state(job_id: str) -> JobState:
    """Ask the controller, which soon forgets a job that has ended, then the accounting, which a site may lack."""
    shown = scontrol.ask("scontrol", "show", "job", "-o", job_id)
    if shown.returncode == 0:
        return parse_scontrol(shown.stdout)
    if "Invalid job id" not in shown.stderr:
        raise UserError(
            f"Slurm does not answer (`scontrol show job {job_id}`: {shown.stderr.strip()}): try again later"
        )
    accounted = scontrol.ask("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job_id)
    state, _, exit_code = accounted.stdout.strip().partition("|")
    return JobState(state.split()[0], exit_code=_exit_code(exit_code)) if state else JobState("GONE")


def parse_scontrol(line: str) -> JobState:
    """Read one line of ``scontrol show job -o``."""
    name = field(line, "JobState")
    ended = name in _ENDED
    detail = field(line, "NodeList" if name == "RUNNING" or ended else "Reason")
    exit_code = _exit_code(field(line, "ExitCode")) if ended else None
    return JobState(name, "" if detail in ("(null)", "None") else detail, int(field(line, "Restarts") or 0), exit_code)


def _exit_code(text: str) -> int | None:
    """Slurm writes STATUS:SIGNAL."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        return None
    status, signal_number = int(found.group(1)), int(found.group(2))
    return 128 + signal_number if signal_number else status

"""The job of a run folder and its state.

``RUN/job.json`` names the job that was submitted last. ``RUN/job.lock`` is locked during a submission and, with
``--cluster local``, until the job's controller ends. The system releases the lock when its holder dies.
A crash leaves nothing to clean up.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from motionmae import locks
from motionmae.errors import UserError
from motionmae.files import write_atomically
from slurm import scontrol
from slurm.scontrol import field

LOCK_TIMEOUT = 5.0
"""Seconds to wait for another submission to release the lock."""
_FAILED = ("FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
_ENDED = ("COMPLETED", *_FAILED)


@dataclass(frozen=True)
class JobRecord:
    """The job that was submitted last for a run."""

    cluster: str  # slurm or local
    job_id: str  # Slurm's job id, or the process id of the local controller
    log: str  # log file of rank 0, over all attempts of the job
    code: str  # folder of the code snapshot
    submitted: float  # seconds since the epoch
    exit_code: int | None = None  # of a local job that has ended; Slurm stores the exit codes of its own jobs

    def write(self, run: Path) -> None:
        write_atomically(run / "job.json", json.dumps(asdict(self), indent=1).encode())

    @staticmethod
    def read(run: Path) -> "JobRecord | None":
        """Read the last job of a run; None if the run was never submitted. Raises UserError if job.json is damaged."""
        try:
            return JobRecord(**json.loads((run / "job.json").read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{run / 'job.json'} is damaged ({error}): make sure that no job trains in {run}, then delete the file"
            ) from error


@dataclass(frozen=True)
class JobState:
    """State of a job in Slurm's terms."""

    name: str  # PENDING, RUNNING, COMPLETED, FAILED, ...; GONE if Slurm has forgotten the job
    detail: str = ""  # nodes of a running job, or the reason why it waits
    restarts: int = 0  # number of requeues
    exit_code: int | None = None  # of a job that has ended; None if unknown; 128 + signal number for a killed job

    @property
    def active(self) -> bool:
        """Whether the job runs or waits in the queue."""
        return self.name not in _ENDED and self.name != "GONE"


def state_of(record: JobRecord, run: Path) -> JobState:
    """Query a job's state from Slurm, or from the lock of a local job. Raises UserError if Slurm does not answer."""
    return _slurm_state(record.job_id) if record.cluster == "slurm" else _local_state(run)


@contextmanager
def submission_lock(run: Path) -> Iterator[int]:
    """Hold the run folder's lock. Yields its file descriptor: a child process that inherits it keeps the lock.

    Raises UserError if another process still holds the lock after LOCK_TIMEOUT.
    """
    run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run / "job.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not locks.acquire(descriptor, timeout=LOCK_TIMEOUT):
            raise UserError(
                f"{run} is in use by a submission or a training run on this machine: see {run / 'job.json'}"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _local_state(run: Path) -> JobState:
    descriptor = os.open(run / "job.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not locks.acquire(descriptor):
            return JobState("RUNNING", "on this machine")
    finally:
        os.close(descriptor)
    record = JobRecord.read(run)  # after the lock is free: the controller writes its status before it releases the lock
    exit_code = None if record is None else record.exit_code
    if exit_code is None:
        return JobState("GONE", "its controller was killed")
    return JobState("COMPLETED" if exit_code == 0 else "FAILED", exit_code=exit_code)


def _slurm_state(job_id: str) -> JobState:
    """Return the state of a job from the controller, or from the accounting database.

    The controller forgets a job soon after its end. Some sites have no accounting database.
    """
    shown = scontrol.run_command("scontrol", "show", "job", "-o", job_id)
    if shown.returncode == 0:
        return parse_scontrol(shown.stdout)
    if "Invalid job id" not in shown.stderr:
        raise UserError(
            f"Slurm does not answer (`scontrol show job {job_id}`: {shown.stderr.strip()}): try again later"
        )
    accounted = scontrol.run_command("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job_id)
    state, _, exit_code = accounted.stdout.strip().partition("|")
    return JobState(state.split()[0], exit_code=_exit_code(exit_code)) if state else JobState("GONE")


def parse_scontrol(line: str) -> JobState:
    """Parse a line of ``scontrol show job -o``."""
    name = field(line, "JobState")
    ended = name in _ENDED
    detail = field(line, "NodeList" if name == "RUNNING" or ended else "Reason")
    exit_code = _exit_code(field(line, "ExitCode")) if ended else None
    return JobState(name, "" if detail in ("(null)", "None") else detail, int(field(line, "Restarts") or 0), exit_code)


def _exit_code(text: str) -> int | None:
    """Parse Slurm's STATUS:SIGNAL."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        return None
    status, signal_number = int(found.group(1)), int(found.group(2))
    return 128 + signal_number if signal_number else status

"""The job of a run folder: its record, its lock, its state, and its log for ``--follow``.

``RUN/job.json`` names the job that was submitted last. ``RUN/job.lock`` is locked during a submission and, with
``--cluster local``, until the job's controller ends. The system releases the lock when its holder dies, so a crash
leaves nothing to clean up.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from submitit.core.utils import JobPaths

from motionmae import locks
from motionmae.config.text_types import HostList, JobId, OneLine
from motionmae.errors import UserError
from motionmae.files import FileTail, write_json
from motionmae.json_text import InvalidJsonError, load_json
from motionmae.runs.end_reason import EndReason
from motionmae.text import LINES, say
from slurm.scontrol import JobState, find_job

LOCK_TIMEOUT = 5.0
"""Seconds to wait for another submission to release the lock."""
_STOPPED = (EndReason.STOPPED.exit_code, EndReason.TERMINATED.exit_code)
_LOG_SECONDS = 0.5
_LOG = LINES + "\r"  # characters of a log that are kept: progress bars return to the start of their line
_STATE_SECONDS = {"slurm": 5.0, "local": 0.5}  # Slurm's controller serves the whole site: do not overload it


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class JobRecord:
    """The job that was submitted last for a run. Its texts are printed as commands, so they are checked."""

    cluster: Literal["slurm", "local"]
    job_id: JobId  # Slurm's job id, or the process id of the local controller
    log: OneLine  # log file of rank 0, over all attempts of the job
    code: OneLine  # folder of the code snapshot
    submitted: float  # seconds since the epoch
    exit_code: int | None = None  # of a local job that has ended; Slurm stores the exit codes of its own jobs
    exclude: HostList = ""  # nodes that the user excluded (`launch.exclude`)
    chain: tuple[JobId, ...] = ()  # with `launch.chain`: the submission's jobs in order, also those that have ended
    links: int = 0  # jobs that shall wait behind the run's job (`launch.chain`)
    step: int = 0  # of the newest checkpoint when the run's job began, if it is a link of the chain
    stalled: int = 0  # links that have begun without a new checkpoint, one after the other

    @property
    def waiting(self) -> tuple[str, ...]:
        """The jobs of the chain behind ``job_id``."""
        return self.chain[self.chain.index(self.job_id) + 1 :] if self.job_id in self.chain else ()

    def at(self, job_id: str) -> "JobRecord":
        """Return the record with another job of the chain as the run's job."""
        return replace(self, job_id=job_id, log=rank_zero_log(Path(self.log).parent, job_id))

    def write(self, run: Path) -> None:
        write_json(run / "job.json", asdict(self))

    @staticmethod
    def read(run: Path) -> "JobRecord | None":
        """Read the last job of a run; None if the run was never submitted. Raises UserError if job.json is damaged."""
        try:
            return load_json(run / "job.json", JobRecord)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except InvalidJsonError as error:
            raise UserError(
                f"{run / 'job.json'} is damaged ({error}): make sure that no job trains in {run}, then delete the file"
            ) from error


def rank_zero_log(folder: Path, job_id: str) -> str:
    """Return the path of rank 0's log, locally and on Slurm. All attempts of the job write to it."""
    return str(JobPaths(folder, job_id, 0).stdout)


def state_of(record: JobRecord, run: Path) -> JobState:
    """Query a job's state from Slurm, or from the lock of a local job. Raises UserError if Slurm does not answer."""
    return current_job(record, run)[1]


def current_job(record: JobRecord, run: Path) -> tuple[JobRecord, JobState]:
    """Return the record at the job of its chain that is active, else at the last one that began, with the job's state.

    Raises UserError if Slurm does not answer.
    """
    current = record, find_job(record.job_id) if record.cluster == "slurm" else _local_state(run)
    for job_id in record.waiting:
        if current[1].active:
            break
        state, link = find_job(job_id), record.at(job_id)
        if state.active or Path(link.log).exists():
            current = link, state
    return current


@contextmanager
def submission_lock(run: Path) -> Iterator[int]:
    """Hold the run folder's lock and yield its file descriptor. A child that inherits the descriptor keeps the lock.

    Raises UserError if another process still holds the lock after LOCK_TIMEOUT.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / "job.lock").open("ab") as lock:
        if not locks.acquire(lock, timeout=LOCK_TIMEOUT):
            raise UserError(
                f"{run} is in use by a submission or a training run on this machine: wait, or stop the job that "
                f"{run / 'job.json'} names"
            )
        yield lock.fileno()


def _local_state(run: Path) -> JobState:
    with (run / "job.lock").open("ab") as lock:
        if not locks.acquire(lock):
            return JobState("RUNNING", "on this machine")
    record = JobRecord.read(run)  # after the lock is free: the controller writes its status before it releases the lock
    if record is None or record.exit_code is None:
        return JobState("GONE", "its controller was killed")
    return JobState("FAILED" if record.exit_code else "COMPLETED", exit_code=record.exit_code)


def follow(record: JobRecord, run: Path) -> int:
    """Print the log of rank 0 and every change of the job's state until the job ends; return its exit status.

    Ctrl-C raises KeyboardInterrupt and leaves the job running.
    """
    tail = FileTail(Path(record.log))
    previous: tuple[str, JobState] | None = None
    polled = -1e9
    while True:
        say(tail.new_text(), keep=_LOG, end="")
        if time.monotonic() - polled > _STATE_SECONDS[record.cluster]:
            polled = time.monotonic()
            try:
                link, state = current_job(_newest(record, run), run)
                if link.log != record.log:  # the next job of the chain continues the run
                    say(tail.new_text(), keep=_LOG, end="")
                    tail = FileTail(Path(link.log))
                record = link
                if (record.job_id, state) != previous:
                    say(_describe(record, state))
                elif not state.active:  # twice in a row: a job looks ended during a requeue
                    say(tail.new_text(), keep=_LOG, end="")
                    return _exit_status(record, state)
                previous = record.job_id, state
            except UserError as error:  # Slurm does not answer
                say(f"-- {error}")
                previous = previous if previous and previous[1].active else None
        time.sleep(_LOG_SECONDS)


def _newest(record: JobRecord, run: Path) -> JobRecord:
    """Read the record again: a job of a chain submits further jobs."""
    newest = JobRecord.read(run)
    return newest if newest is not None and record.job_id in newest.chain else record


def _describe(record: JobRecord, state: JobState) -> str:
    restarts = f", requeued {state.restarts} times" if state.restarts else ""
    detail = f" ({state.detail})" if state.detail else ""
    name = "STOPPED" if state.exit_code in _STOPPED else state.name  # Slurm calls it FAILED, or CANCELLED
    return f"-- job {record.job_id}: {name}{detail}{restarts}"


def _exit_status(record: JobRecord, state: JobState) -> int:
    if state.name == "COMPLETED":
        return 0
    if state.exit_code in _STOPPED:
        say("-- the run was stopped as asked, after a save; the same command resumes it")
    elif state.name == "CANCELLED":
        say("-- the run was stopped; the same command resumes it")
    else:
        say(f"-- the run failed; the logs of all ranks are in {Path(record.log).parent}")
    return state.exit_code or 1

"""``--follow``: what rank 0 prints and what becomes of the job, as it happens."""

import signal
import time
from pathlib import Path

from motionmae.errors import UserError
from slurm.job_state import JobRecord, JobState, state_of

_LOG_SECONDS = 0.5
_STATE_SECONDS = {"slurm": 5.0, "local": 0.5}  # Slurm's controller serves the whole site: do not press it


class LogTail:
    """Hands on what is appended to a file that need not exist yet.

    Args:
        path: the file.
        skip: whether what is in it already is left out.
    """

    def __init__(self, path: Path, skip: bool = False) -> None:
        self._path = path
        self._position = path.stat().st_size if skip and path.exists() else 0

    def new_text(self) -> str:
        """What was appended since the last call, in whole lines; the rest waits for its end."""
        if not self._path.exists():
            return ""
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        self._position += len(whole)
        return whole.decode(errors="replace")


def follow(record: JobRecord, run: Path) -> int:
    """Print the log of rank 0 and every change of the job's state until the job ends; returns its exit status.

    A Ctrl-C ends the following, not the job: KeyboardInterrupt is left to the caller.
    """
    tail = LogTail(Path(record.log))
    before: JobState | None = None
    asked = -1e9
    while True:
        print(tail.new_text(), end="", flush=True)
        if time.monotonic() - asked > _STATE_SECONDS[record.cluster]:
            asked = time.monotonic()
            state = _state_or_before(record, run, before)
            if state is not None and state != before:
                print(_sentence(record, state), flush=True)
            elif state is not None and not state.active:  # seen twice: a job in the middle of a requeue looks ended
                print(tail.new_text(), end="", flush=True)
                return _exit_status(record, state)
            before = state
        time.sleep(_LOG_SECONDS)


def _state_or_before(record: JobRecord, run: Path, before: JobState | None) -> JobState | None:
    try:
        return state_of(record, run)
    except UserError as error:
        print(f"-- {error}", flush=True)
        return before if before is None or before.active else None


def _sentence(record: JobRecord, state: JobState) -> str:
    restarts = f", requeued {state.restarts} x" if state.restarts else ""
    detail = f" ({state.detail})" if state.detail else ""
    return f"-- job {record.job_id}: {state.name}{detail}{restarts}"


def _exit_status(record: JobRecord, state: JobState) -> int:
    if state.name == "COMPLETED":
        return 0
    if state.name == "CANCELLED" or state.exit_code == 128 + signal.SIGTERM:
        print("-- the run was asked to stop; the same command resumes it", flush=True)
    else:
        print(f"-- the run did not finish; every rank's log is in {Path(record.log).parent}", flush=True)
    return state.exit_code or 1

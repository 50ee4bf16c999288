"""``--follow``: print the log of rank 0 and every change of the job's state."""

import signal
import time
from pathlib import Path

from motionmae.errors import UserError
from slurm.job_state import JobRecord, JobState, state_of

_LOG_SECONDS = 0.5
_STATE_SECONDS = {"slurm": 5.0, "local": 0.5}  # Slurm's controller serves the whole site: do not overload it


class LogTail:
    """Reader of the new lines of a file that may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def new_text(self) -> str:
        """Return the complete lines appended since the last call."""
        if not self._path.exists():
            return ""
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        lines = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        self._position += len(lines)
        return lines.decode(errors="replace")


def follow(record: JobRecord, run: Path) -> int:
    """Print log and state until the job ends; return its exit status.

    Ctrl-C raises KeyboardInterrupt and leaves the job running.
    """
    tail = LogTail(Path(record.log))
    previous: JobState | None = None
    polled = -1e9
    while True:
        print(tail.new_text(), end="", flush=True)
        if time.monotonic() - polled > _STATE_SECONDS[record.cluster]:
            polled = time.monotonic()
            state = _poll_state(record, run, previous)
            if state is not None and state != previous:
                print(_describe(record, state), flush=True)
            elif state is not None and not state.active:  # twice in a row: a job looks ended during a requeue
                print(tail.new_text(), end="", flush=True)
                return _exit_status(record, state)
            previous = state
        time.sleep(_LOG_SECONDS)


def _poll_state(record: JobRecord, run: Path, previous: JobState | None) -> JobState | None:
    """Return the job's state. If Slurm does not answer, return the previous state of an active job, else None."""
    try:
        return state_of(record, run)
    except UserError as error:
        print(f"-- {error}", flush=True)
        return previous if previous is None or previous.active else None


def _describe(record: JobRecord, state: JobState) -> str:
    restarts = f", requeued {state.restarts} times" if state.restarts else ""
    detail = f" ({state.detail})" if state.detail else ""
    return f"-- job {record.job_id}: {state.name}{detail}{restarts}"


def _exit_status(record: JobRecord, state: JobState) -> int:
    if state.name == "COMPLETED":
        return 0
    if state.name == "CANCELLED" or state.exit_code == 128 + signal.SIGTERM:
        print("-- the run was stopped; the same command resumes it", flush=True)
    else:
        print(f"-- the run failed; the logs of all ranks are in {Path(record.log).parent}", flush=True)
    return state.exit_code or 1

"""How the tasks of a job step ended, as srun reports it, and what was the cause.

srun exits with the highest status of all tasks, and those that it ends after the first failure have one too (143 beats
every class of ours). What it prints on standard error is ordered and names nodes::

    srun: error: node2: task 1: Killed
    srun: launch/slurm: _step_signal: Terminating StepId=7.0
    srun: error: node1: task 0: Exited with exit code 76
"""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from submitit.slurm.slurm import _parse_node_list  # knows every form of Slurm's host lists

from motionmae.runs.end_reason import Exit


class Cause(str, Enum):
    """Why an attempt ended early; what follows is decided in :mod:`slurm.requeue_policy`."""

    USER_ERROR = "a mistake that a person must mend"
    LEASE_LOST = "a newer attempt has the run"
    STOPPED = "it was asked to stop"
    STRAY_SIGNAL = "a SIGTERM that nobody answers for"
    BAD_NODE = "a node failed its pre-flight"
    KILLED = "a rank was killed"
    LOST_PEERS = "ranks lost each other"
    NO_STORAGE = "checkpoints could not be read"
    HUNG = "a step hung"
    CRASHED = "an error in the program"
    NOT_STARTED = "the ranks could not be started"
    TIME_LIMIT = "the time limit came before the run had saved"
    NODE_DOWN = "a node went down"


_OF_STATUS: dict[int, Cause] = {
    Exit.USER_ERROR: Cause.USER_ERROR,
    Exit.LEASE_LOST: Cause.LEASE_LOST,
    Exit.STOPPED: Cause.STOPPED,
    Exit.TERMINATED: Cause.STRAY_SIGNAL,
    Exit.BAD_NODE: Cause.BAD_NODE,
    Exit.LOST_PEERS: Cause.LOST_PEERS,
    Exit.NO_STORAGE: Cause.NO_STORAGE,
    Exit.HUNG: Cause.HUNG,
}
_DECISIVE = (Cause.USER_ERROR, Cause.STOPPED, Cause.LEASE_LOST, Cause.BAD_NODE, Cause.NO_STORAGE)
"""Whichever rank says one of these knows better than those that merely noticed."""
_SIGNALS = ("Killed", "Segmentation fault", "Bus error", "Illegal instruction")
"""Ends that hardware brings about. Not among them: Terminated (by srun) and Aborted (NCCL, because of another rank)."""
_TASK = re.compile(r"srun: error: (?P<nodes>\S+): tasks? [\d,\-]+: (?P<end>.+)")
_LAUNCH = re.compile(r"srun: error: Task launch for \S+ failed on node (?P<nodes>[^:\s]+)")


@dataclass(frozen=True)
class Failure:
    """The cause of an early end."""

    cause: Cause
    node: str = ""
    """Whose fault it was, as far as one can tell."""
    status: int = 1
    """Exit status of the rank that ended so; 137 for one that was killed."""


def find_failure(lines: Iterable[str]) -> Failure:
    """The cause that srun's messages on standard error point to."""
    found = [failure for line in lines if (failure := _failure_in(line)) is not None]
    decisive = [failure for cause in _DECISIVE for failure in found if failure.cause is cause]
    return next(iter([*decisive, *found]), Failure(Cause.NOT_STARTED))


def _failure_in(line: str) -> Failure | None:
    if (launch := _LAUNCH.match(line)) is not None:
        return Failure(Cause.NOT_STARTED, launch["nodes"])
    if (task := _TASK.match(line)) is None:
        return None
    node = _parse_node_list(task["nodes"])[0]
    if status := re.fullmatch(r"Exited with exit code (\d+)", task["end"]):
        cause = _OF_STATUS.get(int(status[1]), Cause.CRASHED)
        return Failure(cause, node if cause is Cause.BAD_NODE else "", int(status[1]))
    return Failure(Cause.KILLED, node if task["end"].startswith(_SIGNALS) else "", 128 + signal.SIGKILL)

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

from submitit.slurm.slurm import _parse_node_list  # knows every form of Slurm's host lists

from motionmae.runs.end_reason import EndReason

_DECISIVE = (
    EndReason.USER_ERROR,
    EndReason.STOPPED,
    EndReason.LEASE_LOST,
    EndReason.BAD_NODE,
    EndReason.NO_STORAGE,
)
"""Reasons that a rank knows from itself. They win over ranks that merely noticed the loss of another rank."""
_OF_EXIT_CODE = {
    reason.exit_code: reason
    for reason in (*_DECISIVE, EndReason.TERMINATED, EndReason.LOST_PEERS, EndReason.HUNG, EndReason.CRASHED)
}
_SIGNALS = ("Killed", "Segmentation fault", "Bus error", "Illegal instruction")
"""Ends that hardware brings about. Not among them: Terminated (by srun) and Aborted (NCCL, because of another rank)."""
_TASK = re.compile(r"srun: error: (?P<nodes>\S+): tasks? [\d,\-]+: (?P<end>.+)")
_LAUNCH = re.compile(r"srun: error: Task launch for \S+ failed on node (?P<nodes>[^:\s]+)")


@dataclass(frozen=True)
class Failure:
    """The cause of an early end."""

    reason: EndReason
    node: str = ""
    """The node at fault, if known."""
    status: int = 1
    """Exit status of the rank that ended so; 137 for one that was killed."""


def find_failure(lines: Iterable[str]) -> Failure:
    """The cause that srun's messages on standard error point to."""
    found = [failure for line in lines if (failure := _failure_in(line)) is not None]
    decisive = [failure for reason in _DECISIVE for failure in found if failure.reason is reason]
    return next(iter([*decisive, *found]), Failure(EndReason.NOT_STARTED))


def _failure_in(line: str) -> Failure | None:
    if (launch := _LAUNCH.match(line)) is not None:
        return Failure(EndReason.NOT_STARTED, launch["nodes"])
    if (task := _TASK.match(line)) is None:
        return None
    node = _parse_node_list(task["nodes"])[0]
    if status := re.fullmatch(r"Exited with exit code (\d+)", task["end"]):
        reason = _OF_EXIT_CODE.get(int(status[1]), EndReason.CRASHED)
        return Failure(reason, node if reason is EndReason.BAD_NODE else "", int(status[1]))
    return Failure(EndReason.KILLED, node if task["end"].startswith(_SIGNALS) else "", 128 + signal.SIGKILL)

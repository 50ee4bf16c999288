"""Cause of a failed job step, from the messages of srun."""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

from motionmae.runs.end_reason import EndReason

_DECISIVE = (EndReason.USER_ERROR, EndReason.STOPPED, EndReason.LEASE_LOST, EndReason.BAD_NODE, EndReason.NO_STORAGE)
"""Reasons that a rank reports about itself. They take precedence over failures that only report a lost rank."""
_OF_EXIT_CODE = {end.exit_code: end for end in (*_DECISIVE, EndReason.TERMINATED, EndReason.LOST_PEERS, EndReason.HUNG)}
_SIGNALS = ("Killed", "Segmentation fault", "Bus error", "Illegal instruction")
"""Signals for which the node is blamed. Terminated comes from srun, and Aborted from NCCL because of another rank."""
_TASK = re.compile(r"srun: error: (?P<nodes>\S+): tasks? [\d,\-]+: (?P<end>.+)")
_LAUNCH = re.compile(r"srun: error: Task launch for \S+ failed on node (?P<nodes>[^:\s]+)")


@dataclass(frozen=True)
class Failure:
    """Cause of a failed job step."""

    reason: EndReason
    node: str = ""  # the node at fault, if known
    status: int = 1  # exit status of the failed rank; 137 for a killed rank


def find_failure(lines: Iterable[str]) -> Failure:
    """Return the cause of a failed job step according to srun's messages on standard error.

    srun exits with the highest status of all tasks. After the first failure, srun ends the other tasks, and their
    status 143 is higher than all other exit codes. The messages on standard error are in order and name the nodes::

        srun: error: node2: task 1: Killed
        srun: launch/slurm: _step_signal: Terminating StepId=7.0
        srun: error: node1: task 0: Exited with exit code 76
    """
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

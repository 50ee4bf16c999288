"""Cause of a failed job step, from the messages of srun."""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from motionmae.runs.end_reason import EndReason
from slurm.scontrol import expand_nodes

_DECISIVE = (
    EndReason.USER_ERROR,
    EndReason.STOPPED,
    EndReason.LEASE_LOST,
    EndReason.BAD_NODE,
    EndReason.NO_STORAGE,
    EndReason.PREEMPTED,  # only where rank 0 could not requeue the job
)
"""Reasons that a rank reports about itself. They take precedence over failures that only report a lost rank."""
_OF_EXIT_CODE = {end.exit_code: end for end in (*_DECISIVE, EndReason.TERMINATED, EndReason.LOST_PEERS, EndReason.HUNG)}
_SIGNALS = ("Killed", "Segmentation fault", "Bus error", "Illegal instruction")
"""Signals for which the node is blamed. Terminated comes from srun, and Aborted from NCCL because of another rank."""
_TASK = re.compile(r"srun: error: (?P<nodes>\S+): tasks? [\d,\-]+: (?P<end>.+)")
_LAUNCH = re.compile(r"srun: error: Task launch for \S+ failed on node (?P<nodes>[^:\s]+)")

_NODE_FAILURE = re.compile(r"srun: error: Node failure on (?P<nodes>\S+)")


@dataclass(frozen=True)
class Failure:
    """Cause of a failed job step."""

    reason: EndReason
    node: str = ""  # the node at fault, if known
    status: int = 1  # exit status of the failed rank; 137 for a killed rank


@dataclass(frozen=True)
class Ended:
    """A rank that has ended: its node, and its exit status if it has announced one."""

    node: str
    status: int | None = None


def find_failure(lines: Iterable[str]) -> Failure:
    """Return the cause of a failed job step according to srun's messages on standard error.

    srun exits with the highest status of all tasks. After the first failure, srun ends the other tasks, and their
    status 143 is higher than all other exit codes. The messages on standard error are in order and name the nodes::

        srun: error: node2: task 1: Killed
        srun: launch/slurm: _step_signal: Terminating StepId=7.0
        srun: error: node1: task 0: Exited with exit code 76
    """
    found = [failure for line in lines if (failure := _failure_in(line)) is not None]
    return _decisive(found) or next(iter(found), Failure(EndReason.NOT_STARTED))


def find_cause(ended: Sequence[Ended], lines: Sequence[str]) -> Failure | None:
    """Return the cause of a failed attempt from its ranks in the order of their ends, and srun's messages.

    None if the first rank has ended without a word and srun has not yet said how.
    """
    first = ended[0]
    found = [failure for line in lines if (failure := _failure_in(line)) is not None]
    announced = [failure_of_status(rank.status, rank.node) for rank in ended if rank.status]
    if decisive := _decisive([*announced, *found]):
        return decisive
    of_first = [failure for line in lines if first.node in _nodes_in(line) and (failure := _failure_in(line))]
    cause = announced[0] if first.status is not None else next(iter(of_first), None)
    if cause is not None and cause.reason is EndReason.LOST_PEERS:  # a hanging rank is why, and ends at the same time
        return next((failure for failure in [*announced, *found] if failure.reason is EndReason.HUNG), cause)
    return cause


def failure_of_status(status: int, node: str) -> Failure:
    """Return the failure of a rank on ``node`` that exits with ``status``."""
    reason = _OF_EXIT_CODE.get(status, EndReason.CRASHED)
    return Failure(reason, node if reason is EndReason.BAD_NODE else "", status)


def failed_nodes(lines: Iterable[str]) -> list[str]:
    """Return the nodes of a step that Slurm has found dead, or that an administrator has set down, as srun says."""
    return [node for line in lines if (match := _NODE_FAILURE.match(line)) for node in expand_nodes(match["nodes"])]


def _decisive(found: Sequence[Failure]) -> Failure | None:
    return next((failure for reason in _DECISIVE for failure in found if failure.reason is reason), None)


def _nodes_in(line: str) -> list[str]:
    match = _TASK.match(line) or _LAUNCH.match(line)
    return expand_nodes(match["nodes"]) if match else []


def _failure_in(line: str) -> Failure | None:
    if (launch := _LAUNCH.match(line)) is not None:
        return Failure(EndReason.NOT_STARTED, launch["nodes"])
    if (task := _TASK.match(line)) is None:
        return None
    node = expand_nodes(task["nodes"])[0]
    if status := re.fullmatch(r"Exited with exit code (\d+)", task["end"]):
        return failure_of_status(int(status[1]), node)
    return Failure(EndReason.KILLED, node if task["end"].startswith(_SIGNALS) else "", 128 + signal.SIGKILL)

"""How an attempt of a run ended: exit codes, requeue policy, run states, and the classification of errors."""

import re
from enum import Enum, StrEnum
from typing import Any

from motionmae.errors import UserError


class LeaseLost(RuntimeError):  # noqa: N818 - the process did nothing wrong
    """Loss of the lease to a newer attempt. This attempt must stop without writing anything."""


class StorageError(RuntimeError):
    """Failure to read stored data, which may be intact. Nothing was changed, and a later read may succeed."""


class Requeue(Enum):
    """Whether and when :mod:`slurm.batch.requeue_policy` queues a job again."""

    NEVER = "never"
    ALWAYS = "always"  # rank 0 requeues the job through submitit
    BACKOFF = "backoff"  # at once, then after growing pauses, up to launch.max_retries failures without a checkpoint
    ONCE = "once"


class EndReason(StrEnum):
    """How an attempt ended. Events, metrics, the report and the requeue policy use these values.

    The tuple of each member holds its value and then the four attributes below, in their order. Exit codes 74 to 76
    have the meaning of sysexits.h; 137 and 143 are 128 plus the signal.
    """

    exit_code: int  # exit code of the rank; 1 where the rank cannot choose it
    requeue: Requeue  # whether the requeue policy queues the job again
    badput: str  # badput category of the idle time after the attempt: queue_wait or downtime
    description: str  # clause for messages

    def __new__(cls, value: str, *constants: Any) -> "EndReason":
        """Create a member from the constants in its definition."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.exit_code, member.requeue, member.badput, member.description = constants
        return member

    FINISHED = "finished", 0, Requeue.NEVER, "downtime", "all steps are done and saved"  # idle time is not counted
    PREEMPTED = "preempted", 75, Requeue.ALWAYS, "queue_wait", "preempted or out of time, after a save"  # SIGUSR2
    STOPPED = "stopped", 81, Requeue.NEVER, "downtime", "stopped by the stop file, after a save"
    # SIGTERM, Ctrl-C or a closed terminal. The save resets the backoff.
    TERMINATED = "terminated", 143, Requeue.BACKOFF, "queue_wait", "terminated by a signal, after a save"
    USER_ERROR = "user_error", 2, Requeue.NEVER, "downtime", "an error that a person must fix"
    LEASE_LOST = "lease_lost", 80, Requeue.NEVER, "downtime", "a newer attempt has taken over the run"
    NO_STORAGE = "no_storage", 74, Requeue.BACKOFF, "downtime", "checkpoints could not be read"  # StorageError
    LOST_PEERS = "lost_peers", 76, Requeue.BACKOFF, "downtime", "ranks lost each other"  # or the network failed
    BAD_NODE = "bad_node", 77, Requeue.BACKOFF, "downtime", "a node or its GPU failed"  # avoided next time
    HUNG = "hung", 79, Requeue.BACKOFF, "downtime", "a step hung"  # the watchdog ended the process
    CRASHED = "crashed", 1, Requeue.ONCE, "downtime", "an error in the program"  # with a traceback
    TIME_LIMIT = "time_limit", 1, Requeue.BACKOFF, "downtime", "the time limit came before the run had saved"
    # The next attempt avoids a node on which the run failed twice.
    KILLED = "killed", 137, Requeue.BACKOFF, "downtime", "a rank was killed"
    NODE_DOWN = "node_down", 1, Requeue.ALWAYS, "downtime", "a node went down"  # Slurm itself queues the job again
    NOT_STARTED = "not_started", 1, Requeue.BACKOFF, "downtime", "the ranks could not be started"

    @property
    def saved(self) -> bool:
        """Whether the attempt ended as asked, after a last checkpoint."""
        return self in (EndReason.FINISHED, EndReason.PREEMPTED, EndReason.STOPPED, EndReason.TERMINATED)

    @property
    def run_state(self) -> str:
        """Value of the metric run_state after the attempt."""
        if self is EndReason.TERMINATED:
            return EndReason.STOPPED.value
        return self.value if self.saved else "failed"

    @property
    def restart_reason(self) -> str:
        """Value of the label ``reason`` of the metric restarts_total when the run starts again."""
        if self in (EndReason.KILLED, EndReason.NODE_DOWN):
            return "lost"
        return "hung" if self is EndReason.HUNG else self.run_state


_LOST_MESSAGES = (  # gloo, NCCL and the TCP store mostly raise plain RuntimeErrors
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "timed out waiting",
    "socket timeout",
    "gloo connectfullmesh failed",
    "ncclremoteerror",
    "ncclsystemerror",
    "nccl communicator was aborted",
    "watchdog caught collective operation timeout",
)
_HARDWARE_FAULT = re.compile(  # CUDA's words for a broken GPU, link or driver, also inside NCCL's errors
    "|".join(
        (
            "uncorrectable (ECC|NVLink) error",
            "unspecified launch failure",
            "hardware (stack )?error",
            "GPU is lost",
            "fallen off the bus",
            r"CUDA-capable device\(s\) is/are busy or unavailable",
            "no CUDA-capable device is detected",
            "system not yet initialized",  # NVSwitch without its fabric manager
            r"CUDA (error:|failure( \d+)?) '?unknown error",  # after most XID errors of the driver
        )
    ),
    re.IGNORECASE,
)
_REASONS = {LeaseLost: EndReason.LEASE_LOST, UserError: EndReason.USER_ERROR, StorageError: EndReason.NO_STORAGE}
_LOST_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")


def classify_error(error: BaseException) -> EndReason:
    """Return the reason for which ``error`` ends a rank, from the error or its chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        for kind, reason in _REASONS.items():
            if isinstance(cause, kind):
                return reason
        message = str(cause).lower()
        if isinstance(cause, RuntimeError) and _HARDWARE_FAULT.search(message):
            return EndReason.BAD_NODE
        lost_type = any(base.__name__ in _LOST_TYPES for base in type(cause).__mro__)
        lost_message = any(words in message for words in _LOST_MESSAGES)
        if lost_type or (lost_message and isinstance(cause, RuntimeError)):
            return EndReason.LOST_PEERS
        cause = cause.__cause__
    return EndReason.CRASHED

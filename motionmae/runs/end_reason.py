"""How an attempt of a run ended: exit codes, requeue policy, run states, and the classification of errors."""

from enum import Enum, StrEnum

from motionmae.errors import UserError


class LeaseLost(RuntimeError):  # noqa: N818 - the process did nothing wrong
    """A newer attempt holds the lease on the run directory. This attempt must stop without writing anything."""


class StorageError(RuntimeError):
    """Storage could not be read. The data may be intact, so nothing was changed, and a later read may succeed."""


class Requeue(Enum):
    """Whether and when :mod:`slurm.requeue_policy` queues a job again."""

    NEVER = "never"
    ALWAYS = "always"
    """Rank 0 requeues the job through submitit."""
    BACKOFF = "backoff"
    """At once, then after growing pauses, until `launch.max_retries` failures passed without a new checkpoint."""
    ONCE = "once"


class EndReason(StrEnum):
    """How an attempt ended. Events, metrics, the report and the requeue policy use these values.

    The constants of a member, in this order, are its value, exit code, requeue policy, badput category and description.
    """

    exit_code: int
    """Exit code of the rank; 1 where the rank cannot choose it."""
    requeue: Requeue
    """Whether the requeue policy queues the job again."""
    badput: str
    """Badput category of the idle time after the attempt: queue_wait or downtime."""
    description: str
    """Text for messages, as a clause."""

    def __new__(
        cls,
        value: str,
        exit_code: int = 1,
        requeue: Requeue = Requeue.BACKOFF,
        badput: str = "downtime",
        description: str = "",
    ) -> "EndReason":
        """Create a member from the constants in its definition. A lookup passes only the value."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.exit_code, member.requeue, member.badput, member.description = exit_code, requeue, badput, description
        return member

    FINISHED = "finished", 0, Requeue.NEVER, "downtime", "all steps are done and saved"
    """Idle time after a finished run is not counted."""
    PREEMPTED = "preempted", 75, Requeue.ALWAYS, "queue_wait", "preempted or out of time, after a save"
    """SIGUSR2 arrived (75: sysexits.h, "try again")."""
    STOPPED = "stopped", 81, Requeue.NEVER, "downtime", "stopped by the stop file, after a save"
    TERMINATED = "terminated", 143, Requeue.BACKOFF, "queue_wait", "terminated by a signal, after a save"
    """SIGTERM, Ctrl-C or a closed terminal (128 + SIGTERM). The save resets the backoff."""
    USER_ERROR = "user_error", 2, Requeue.NEVER, "downtime", "an error that a person must fix"
    """A retry would fail in the same way."""
    LEASE_LOST = "lease_lost", 80, Requeue.NEVER, "downtime", "a newer attempt has taken over the run"
    """This attempt wrote nothing after the takeover."""
    NO_STORAGE = "no_storage", 74, Requeue.BACKOFF, "downtime", "checkpoints could not be read"
    """The checkpoints exist, but storage failed (74: sysexits.h, "input/output error")."""
    LOST_PEERS = "lost_peers", 76, Requeue.BACKOFF, "downtime", "ranks lost each other"
    """Other ranks or the network failed (76: sysexits.h, "remote error")."""
    BAD_NODE = "bad_node", 77, Requeue.BACKOFF, "downtime", "a node failed its pre-flight"
    """The next attempt avoids the node."""
    HUNG = "hung", 79, Requeue.BACKOFF, "downtime", "a step hung"
    """The watchdog wrote all stacks to the run's logs and ended the process."""
    CRASHED = "crashed", 1, Requeue.ONCE, "downtime", "an error in the program"
    """An unexpected error with a traceback."""
    TIME_LIMIT = "time_limit", 1, Requeue.BACKOFF, "downtime", "the time limit came before the run had saved"
    KILLED = "killed", 137, Requeue.BACKOFF, "downtime", "a rank was killed"
    """The next attempt avoids a node on which the run failed twice."""
    NODE_DOWN = "node_down", 1, Requeue.ALWAYS, "downtime", "a node went down"
    """Slurm itself queues the job again."""
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
_LOST_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")


def classify_error(error: BaseException) -> EndReason:
    """Return the reason for which ``error`` ends a rank, from the error or its chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LeaseLost):
            return EndReason.LEASE_LOST
        if isinstance(cause, UserError):
            return EndReason.USER_ERROR
        if isinstance(cause, StorageError):
            return EndReason.NO_STORAGE
        if _is_lost_peer(cause):
            return EndReason.LOST_PEERS
        cause = cause.__cause__
    return EndReason.CRASHED


def _is_lost_peer(error: BaseException) -> bool:
    if any(kind.__name__ in _LOST_TYPES for kind in type(error).__mro__):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST_MESSAGES)

"""Exit statuses: how a process of a run ended.

No torch here: what submits jobs reads statuses, and a login node may lack torch.
"""

from enum import IntEnum

from motionmae.errors import UserError


class LeaseLost(RuntimeError):  # noqa: N818 - not an error of this process: it is too late
    """A newer attempt of the run has claimed the run folder: this one must write nothing and end."""


class StorageError(RuntimeError):
    """Storage would not give what lies on it: that may be whole, so nothing was changed, and later it may be read."""


class Exit(IntEnum):
    """The exit status of a rank, below 128 except where shells have a number of their own for it."""

    FINISHED = 0
    """All steps are done and saved."""
    CRASHED = 1
    """An error nobody foresaw, with its traceback (Python's own status for it)."""
    USER_ERROR = 2
    """A person's mistake, said in one sentence: it would happen again."""
    NO_STORAGE = 74
    """Checkpoints are there and could not be read, whatever they hold (sysexits.h: "input/output error")."""
    REQUEUE = 75
    """Preempted or out of time: saved, and to be started again (sysexits.h: "try again")."""
    LOST_PEERS = 76
    """Other ranks, or the network to them, are gone: the last checkpoint holds (sysexits.h: "remote error")."""
    BAD_NODE = 77
    """This rank's node failed its pre-flight: started again elsewhere, the run can be expected to go on."""
    HUNG = 79
    """The watchdog ended a step that took far too long, after writing all stacks to the run's logs."""
    LEASE_LOST = 80
    """A newer attempt has the run folder: nothing was written, and nothing is to be started again."""
    STOPPED = 81
    """A person asked for the end by the stop file: saved, not to be started again by itself."""
    TERMINATED = 143
    """SIGTERM, Ctrl-C, a closed terminal: saved, not to be started again by itself (128 + SIGTERM, as shells say)."""


_LOST = (  # of gloo, NCCL and the TCP store, which raise plain RuntimeErrors for the most part
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


def exit_of(error: BaseException) -> Exit:
    """The class of an error that ends a rank, found in it or in what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LeaseLost):
            return Exit.LEASE_LOST
        if isinstance(seen, UserError):
            return Exit.USER_ERROR
        if isinstance(seen, StorageError):
            return Exit.NO_STORAGE
        if _is_lost_peer(seen):
            return Exit.LOST_PEERS
        seen = seen.__cause__
    return Exit.CRASHED


def _is_lost_peer(error: BaseException) -> bool:
    if any(kind.__name__ in _LOST_TYPES for kind in type(error).__mro__):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)

"""Lock open files against other processes. The system releases a lock when its holder dies."""

import fcntl
import time
from typing import IO

_POLL_SECONDS = 0.1


def acquire(
    file: int | IO[bytes] | IO[str], *, shared: bool = False, timeout: float | None = 0.0, posix: bool = False
) -> bool:
    """Lock an open file or file descriptor. Return False if another holder keeps the lock.

    The lock lasts until this process, and every child that inherited the file, closes the file.

    Args:
        shared: take a shared lock, which excludes exclusive locks but not other shared locks.
        timeout: seconds to wait for other holders; None waits without a limit.
        posix: take a POSIX lock, which also works between the machines of NFS and Lustre. Children do not inherit the
            lock, and closing any descriptor of the file releases it.

    Raises OSError if the file system has no locks.
    """
    lock = fcntl.lockf if posix else fcntl.flock
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if timeout is None:
        lock(file, mode)
        return True
    end = time.monotonic() + timeout
    while True:
        try:
            lock(file, mode | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # POSIX locks report a holder in both ways
            if time.monotonic() >= end:
                return False
        time.sleep(_POLL_SECONDS)

"""Commands whose output somebody reads the head of."""

import os
import signal
import sys
from collections.abc import Callable


def exit_quietly_on_broken_pipe(main: Callable[[], int]) -> int:
    """The exit status of ``main``; once nobody reads what it prints it ends in silence, as `cat` does.

    The status is then what a shell gives for SIGPIPE, because what was left to do is not done.
    """
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # Python flushes once more at its end, and would complain
        return 128 + signal.SIGPIPE
    return status

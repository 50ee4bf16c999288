"""Signals that child processes must not receive."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

KEPT_FROM_CHILDREN = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
"""Schedulers and terminals send these to every process of a job. Helper processes end with their parent instead."""


@contextmanager
def start_children_without_signals() -> Iterator[None]:
    """Block the signals while the block starts children, which inherit the blocked signals from their first moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, KEPT_FROM_CHILDREN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

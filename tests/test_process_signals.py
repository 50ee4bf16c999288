import os
import signal

import pytest

from motionmae.process_signals import start_children_without_signals

SENT_TO_A_JOB = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_children_of_the_block_have_the_signals_blocked_and_this_process_gets_them_again() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    try:
        with start_children_without_signals():
            assert blocked() == before | SENT_TO_A_JOB | {signal.SIGWINCH}
            if (child := os.fork()) == 0:
                os._exit(0 if blocked() >= SENT_TO_A_JOB else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert blocked() == before | {signal.SIGWINCH}
        with pytest.raises(RuntimeError, match="no memory"), start_children_without_signals():
            raise RuntimeError("no memory")
        assert blocked() == before | {signal.SIGWINCH}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

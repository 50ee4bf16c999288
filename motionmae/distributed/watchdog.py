"""Ends a rank whose work takes far too long, after writing down where it is.

A collective whose peer is gone, a read from a disk that does not answer, a lock that is never given up: a hang says
nothing by itself and holds all GPUs until the time limit. The watchdog is a thread on each rank. What the main thread
(or the checkpoint writer) does next is announced to it with a limit; when that has passed, it writes the stacks of all
threads to ``RUN/logs``, notes the hang in events.jsonl and ends the process with exit code 79 (hung), from which the job
can be started again. All this works while other threads sit in C++, as these give up the interpreter's lock there.
"""

import faulthandler
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from motionmae.config import WatchdogConfig
from motionmae.runs.end_reason import EndReason

POLL_SECONDS = 0.5
LAST_WORDS_SECONDS = 20.0
"""How long stacks and event may take to be written: the disk may be what hangs."""

GRACE_SECONDS = 5.0
"""Between the last words and the end, so that the other ranks come to theirs before they lose this one."""

_RECENT_STEPS = 101
_NEVER = float("inf")


class Watchdog:
    """Watches this process; ``close`` ends it.

    Args:
        limits: how long things may take.
        stacks: file for the stacks.
        announce: called with a sentence before the process ends, to tell others.
    """

    def __init__(self, limits: WatchdogConfig, stacks: Path, announce: Callable[[str], None]) -> None:
        self._limits, self._stacks, self._announce = limits, stacks, announce
        self._doing = {"main": ("", _NEVER)}
        self._durations: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._step_began = 0.0
        self._closed = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def step(self, number: int) -> None:
        """Say that a step begins, and so that the one before it (if any) has ended."""
        now = time.monotonic()
        if self._step_began:
            self._durations.append(now - self._step_began)
        self._step_began = now
        limit = self._limits.step_seconds
        if limit and self._durations:
            limit = max(limit, self._limits.step_factor * median(self._durations))
        self.expect(f"step {number}", limit)

    def expect(self, what: str, limit: float, who: str = "main") -> None:
        """Say what begins now and how many seconds it may take (0 for any time), until something else is said."""
        self._doing[who] = (what, time.monotonic() + limit if limit else _NEVER)

    @contextmanager
    def during(self, what: str, limit: float, who: str = "main") -> Iterator[None]:
        """Watch what happens inside; afterwards what was watched before is, with all its time again.

        Args:
            what: for people.
            limit: seconds; 0 for any time.
            who: the thread that does it.
        """
        before, began = self._doing.get(who, ("", _NEVER)), time.monotonic()
        self.expect(what, limit, who)
        try:
            yield
        finally:
            paused = time.monotonic() - began
            self._doing[who] = (before[0], before[1] + paused)
            if who == "main" and self._step_began:
                self._step_began += paused

    def close(self) -> None:
        """Watch no more. A process that is being ended stays so: what the main thread meets then follows from it."""
        self._closed.set()
        if self._ending:
            self._thread.join()  # which does not return

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(POLL_SECONDS):
            now = time.monotonic()
            silence, looked = now - looked, now
            # After that long the whole process was stopped (SIGSTOP, a sleeping machine), or gets no processor.
            stopped = silence if silence > 4 * POLL_SECONDS else 0.0
            for who, (what, deadline) in list(self._doing.items()):
                if stopped:
                    self._doing[who] = (what, deadline + stopped)
                elif now > deadline:
                    self._end(f"{what} takes longer than the watchdog allows")

    def _end(self, sentence: str) -> None:
        self._ending = True
        last_words = threading.Thread(target=self._speak, args=(sentence,), daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_SECONDS)
        time.sleep(GRACE_SECONDS)
        os._exit(EndReason.HUNG.exit_code)

    def _speak(self, sentence: str) -> None:
        print(f"error: {sentence}; stacks are in {self._stacks}; this rank ends", file=sys.stderr, flush=True)
        with self._stacks.open("w") as file:
            file.write(f"{sentence}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            os.fsync(file.fileno())
        self._announce(sentence)

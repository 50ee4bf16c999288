"""Watchdog thread that ends a rank whose current work exceeds its time limit, and writes the stacks of all threads.

A collective with a dead peer, a read from a disk that does not answer, or a lock that is never released hangs without
an error and holds all GPUs until the job's time limit. The main thread and the checkpoint writer report their current
work and its limit. Past the limit, the watchdog writes the stacks to ``RUN/logs``, records the hang in events.jsonl and
ends the process with the exit code of a hang; the job may then start again. A thread that hangs in C++ has released the
interpreter's lock and does not block the watchdog.
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
from motionmae.text import say

POLL_SECONDS = 0.5
REPORT_SECONDS = 20.0  # time limit for writing the stacks and the event, because the disk itself may hang

GRACE_SECONDS = 5.0  # pause before the process ends, in which the other ranks write their own stacks
_NEVER = float("inf")


class Watchdog:
    """Watchdog of this process, until :meth:`close`.

    Args:
        report: receives one sentence before the process ends.
        compiles: whether the first step compiles the model.
    """

    def __init__(
        self, limits: WatchdogConfig, stacks: Path, report: Callable[[str], None], compiles: bool = False
    ) -> None:
        self.limits, self._stacks, self._report = limits, stacks, report
        self._compiles = compiles
        self._current = {"main": ("", _NEVER)}
        self._durations: deque[float] = deque(maxlen=101)
        self._step_began = 0.0
        self._closed = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def step(self, number: int) -> None:
        """Watch step ``number`` from now on; the previous step has ended."""
        now = time.monotonic()
        limit, first = self.limits.step_seconds, not self._step_began
        if not first:
            self._durations.append(now - self._step_began)
        self._step_began = now
        if limit and first and self._compiles:
            limit = max(limit, self.limits.startup_seconds) if self.limits.startup_seconds else 0.0
        elif limit and self._durations:
            limit = max(limit, self.limits.step_factor * median(self._durations))
        self.expect(f"step {number}", limit)

    def expect(self, what: str, limit: float, thread: str = "main") -> None:
        """Watch ``what`` until the next call, for at most ``limit`` seconds (0 disables the limit)."""
        self._current[thread] = (what, time.monotonic() + limit if limit else _NEVER)

    @contextmanager
    def during(self, what: str, limit: float, thread: str = "main") -> Iterator[None]:
        """Watch ``what`` inside the block, and pause the clock of the enclosing work."""
        before, began = self._current.get(thread, ("", _NEVER)), time.monotonic()
        self.expect(what, limit, thread)
        try:
            yield
        finally:
            paused = time.monotonic() - began
            self._current[thread] = (before[0], before[1] + paused)
            if thread == "main" and self._step_began:
                self._step_began += paused

    def close(self) -> None:
        """Stop watching. If the watchdog is about to end the process, wait for the end.

        Meanwhile the main thread may lose the other ranks; the resulting error is a consequence of the hang.
        """
        self._closed.set()
        if self._ending:
            self._thread.join()  # does not return

    def _watch(self) -> None:
        checked = time.monotonic()
        while not self._closed.wait(POLL_SECONDS):
            now = time.monotonic()
            elapsed, checked = now - checked, now
            # A much longer poll means that the whole process stood still (SIGSTOP, a suspended or overloaded machine).
            stopped = elapsed if elapsed > 4 * POLL_SECONDS else 0.0
            for thread, (what, deadline) in list(self._current.items()):
                if stopped:
                    self._current[thread] = (what, deadline + stopped)
                elif now > deadline:
                    self._end(f"{what} takes longer than the watchdog allows")

    def _end(self, sentence: str) -> None:
        self._ending = True
        report = threading.Thread(target=self._write_report, args=(sentence,), daemon=True)
        report.start()
        report.join(REPORT_SECONDS)
        time.sleep(GRACE_SECONDS)
        os._exit(EndReason.HUNG.exit_code)

    def _write_report(self, sentence: str) -> None:
        say(f"error: {sentence}; stack traces: {self._stacks}; this rank exits now", file=sys.stderr)
        with self._stacks.open("w") as file:
            file.write(f"{sentence}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            os.fsync(file.fileno())
        self._report(sentence)

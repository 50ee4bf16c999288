"""Requests to stop or save, by signals and by files. All ranks act on a request together at the end of a step.

The ranks agree by a message that begins with the step and is read at its end, so that no step waits for it. A request
that arrives during a step therefore takes effect after the next step.

Slurm sends SIGUSR2, through submitit, before a time limit or a preemption: the run saves and is requeued. It sends
SIGTERM where the user signal is not configured, and on ``scancel``: the run saves and is not requeued. Ctrl-C and a
closed terminal count as SIGTERM; a second Ctrl-C ends the process at once. A handler only sets a flag: a collective
inside a handler would run on one rank only. While a rank still waits for the others, there is nothing to save, and a
signal ends it at once.

People create files in the run folder: ``stop`` ends the run after a save, ``save`` saves. Each file is removed once its
request is done. A file that was created before the run started takes effect after the first step.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from motionmae.runs.end_reason import EndReason

POLL_SECONDS = 1.0  # shortest time between two checks of the files, which may be on a shared disk

# The highest level wins: SIGTERM follows SIGUSR2 at the end of the grace period.
_LEVELS = {signal.SIGTERM: 1, signal.SIGINT: 1, signal.SIGHUP: 1, signal.SIGUSR2: 2}
_STOP_FILE_LEVEL = 3
_END_REASONS = (None, EndReason.TERMINATED, EndReason.PREEMPTED, EndReason.STOPPED)  # by level
_INTERRUPT_MESSAGE = b"\nsaving after the next step, then exiting; press Ctrl-C again to exit without saving\n"


@dataclass(frozen=True)
class Request:
    """Request that all ranks have agreed on."""

    end: EndReason | None  # reason for which the attempt saves and ends; None: training continues
    save: bool


class Stopped(Exception):  # noqa: N818
    """End of an attempt by a signal before training began. There is nothing to save."""

    def __init__(self, end: EndReason) -> None:
        super().__init__("stopped by a signal before training began; nothing was lost")
        self.end = end


class StopSignals:
    """Signal handlers that only set a flag; ``with StopSignals() as signals:`` restores the former handlers."""

    def __init__(self) -> None:
        # Former handlers by signal. A Slurm job calls submitit's handler after the save.
        self.former: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self.level = 0  # of the most urgent signal so far; 0 without a signal
        self._interrupted = self._immediate = False
        self._terminal_outputs = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def __enter__(self) -> "StopSignals":
        """Install the handlers, from the main thread.

        Ctrl-C and hang-ups stay ignored if the process was started to ignore them (``nohup``, ``&`` in a script).
        """
        for number in _LEVELS:
            from_terminal = number in (signal.SIGINT, signal.SIGHUP)
            if not from_terminal or signal.getsignal(number) is not signal.SIG_IGN:
                self.former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """End the attempt at once, inside this block, at a signal or if one has arrived before.

        Raises:
            Stopped: a stop signal has arrived.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        self._immediate = True
        try:
            self._stop_if_asked()
            yield
        finally:
            self._immediate = False

    def _stop_if_asked(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt("interrupted before training began; nothing was lost")
        if self.level and (end := _END_REASONS[self.level]):
            raise Stopped(end)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            if os.environ.get("RANK", "0") == "0" and not self._immediate:
                os.write(2, _INTERRUPT_MESSAGE)  # the signal may have interrupted a print
        elif number == signal.SIGHUP:  # output to a closed terminal would fail, and the save with it
            null = os.open(os.devnull, os.O_WRONLY)
            for descriptor in self._terminal_outputs:
                os.dup2(null, descriptor)
            os.close(null)
        self.level = max(self.level, _LEVELS[signal.Signals(number)])
        if self._immediate:
            self._stop_if_asked()


class StopRequests:
    """Collector of the requests from all ranks' signals and from the files, which rank 0 checks."""

    def __init__(self, signals: StopSignals, folder: Path, is_rank_zero: bool) -> None:
        self._signals, self._is_rank_zero = signals, is_rank_zero
        self._stop, self._save = folder / "stop", folder / "save"
        self._next_poll = 0.0
        self._found = (False, False)
        self._message: dist.Work | None = None  # in progress
        self._answer = torch.zeros(2, dtype=torch.int64)  # level, and whether to save

    def begin_sync(self) -> None:
        """Begin to agree with all ranks on one request. It uses CPU tensors, so that no device waits.

        All ranks must call this, and then :meth:`finish_sync`.
        """
        stop, save = self._poll_files()
        level = _STOP_FILE_LEVEL if stop else self._signals.level
        self._answer = torch.tensor([level, int(save)])
        self._message = dist.all_reduce(self._answer, op=dist.ReduceOp.MAX, async_op=True)

    def finish_sync(self) -> Request:
        """Return the request of all ranks as of :meth:`begin_sync`."""
        assert self._message is not None, "begin_sync comes first"
        self._message.wait()
        self._message = None
        level, save = self._answer.tolist()
        return Request(_END_REASONS[level], bool(save))

    def clear(self, request: Request) -> None:
        """Remove the files of a request that is done. This attempt must hold the lease on the run folder."""
        if self._is_rank_zero and (request.save or request.end is EndReason.STOPPED):
            self._save.unlink(missing_ok=True)  # a stop has saved too
            if request.end is EndReason.STOPPED:
                self._stop.unlink(missing_ok=True)
            self._found = (False, False)

    def _poll_files(self) -> tuple[bool, bool]:
        if self._is_rank_zero and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + POLL_SECONDS
            self._found = (self._stop.is_file(), self._save.is_file())
        return self._found

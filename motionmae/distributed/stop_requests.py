"""What a run is asked to do from outside, by signals and by files; all ranks act on it together at the end of a step.

SIGUSR2 is what Slurm sends before a time limit or a preemption, through submitit: save and come back. SIGTERM is
what it sends where the user signal is not configured, and on ``scancel``: save, and do not requeue. A person's Ctrl-C
and the end of a terminal are taken like it; a second Ctrl-C ends at once.
A handler only sets a flag: doing anything in it would run a collective on one rank while the others are elsewhere.

People use files in the run folder: ``stop`` ends the run after a save, ``save`` makes it save now. Each is one request,
and is removed when it has been met; one that nobody has met yet, because the run was not there, is met at its next
start after one step.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from motionmae.runs.end_reason import EndReason

LOOK_SECONDS = 1.0
"""Shortest time between two looks at the files; they may lie on a shared disk."""

# The highest one wins: SIGTERM follows SIGUSR2 when the grace period ends.
_LEVELS = {signal.SIGTERM: 1, signal.SIGINT: 1, signal.SIGHUP: 1, signal.SIGUSR2: 2}
_BY_PEOPLE = (signal.SIGINT, signal.SIGHUP)
_SAVING = b"\nsaving after this step, then the end; Ctrl-C once more leaves at once\n"
_STOP_LEVEL = 3
_REASONS = (None, EndReason.TERMINATED, EndReason.PREEMPTED, EndReason.STOPPED)


@dataclass(frozen=True)
class Request:
    """What all ranks have agreed to do after a step."""

    end: EndReason | None
    """Save and end for this reason. None: go on."""
    save: bool
    """Save."""


class Preemption:
    """Flag-only handlers of the signals above; ``with Preemption() as preemption:`` puts the former ones back.

    Attributes:
        former: the handlers before ours, by signal; a Slurm job chains to submitit's after the save.
        level: the most urgent signal so far; 0 for none.
    """

    def __init__(self) -> None:
        self.former: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self.level = 0
        self._interrupted = False
        self._on_terminal = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def install(self) -> "Preemption":
        """Take over the signals. Main thread only, as Python demands.

        Ctrl-C and hang-ups that the process was started to ignore (``nohup``, ``&`` in a script) are left so.
        """
        for number in _LEVELS:
            if number not in _BY_PEOPLE or signal.getsignal(number) is not signal.SIG_IGN:
                self.former[number] = signal.signal(number, self._note)
        return self

    def restore(self) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def __enter__(self) -> "Preemption":
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            if os.environ.get("RANK", "0") == "0":
                os.write(2, _SAVING)  # print may be what was interrupted
        elif number == signal.SIGHUP:  # a terminal that is gone takes no words, and the save must not fail for that
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in self._on_terminal:
                os.dup2(nowhere, descriptor)
            os.close(nowhere)
        self.level = max(self.level, _LEVELS[signal.Signals(number)])


class StopRequests:
    """Asks every rank and the run folder what the run is to do.

    Args:
        preemption: this rank's signals.
        folder: the run folder; looked at by rank 0 alone, at most every LOOK_SECONDS.
        first: whether this is rank 0.
    """

    def __init__(self, preemption: Preemption, folder: Path, first: bool) -> None:
        self._preemption, self._first = preemption, first
        self._stop, self._save = folder / "stop", folder / "save"
        self._next_look = 0.0
        self._found = (False, False)

    def sync_across_ranks(self) -> Request:
        """What the run is to do now. Collective, by a message over the CPU that no device waits for."""
        stop, save = self._look()
        level = _STOP_LEVEL if stop else self._preemption.level
        answer = torch.tensor([level, int(save)])
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return Request(_REASONS[int(answer[0])], bool(answer[1]))

    def clear(self, request: Request) -> None:
        """Remove the files of a request that has been met. The run folder must be this attempt's."""
        if self._first and (request.save or request.end is EndReason.STOPPED):
            self._save.unlink(missing_ok=True)  # also where the stop was asked for: it has saved
            if request.end is EndReason.STOPPED:
                self._stop.unlink(missing_ok=True)
            self._found = (False, False)

    def _look(self) -> tuple[bool, bool]:
        if self._first and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._found = (self._stop.exists(), self._save.exists())
        return self._found

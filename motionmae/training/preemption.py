"""Signals that end a run: a handler only sets a flag, and all ranks act on it together at the end of a step.

SIGUSR2 is what Slurm sends before a time limit or a preemption, through submitit: save and come back. SIGTERM is
what it sends where the user signal is not configured, and on ``scancel``: save, and do not requeue.
Doing anything in the handler itself would run a collective on one rank while the others are elsewhere: a deadlock.
"""

import signal
from collections.abc import Callable
from enum import Enum
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from motionmae.training.exits import Exit


class Outcome(Enum):
    """How an incarnation of a run ended; the value is the exit code of ``python -m motionmae pretrain``."""

    FINISHED = Exit.FINISHED
    """All steps are done and saved."""
    REQUEUE = Exit.REQUEUE
    """SIGUSR2 was seen: saved, the caller should requeue."""
    TERMINATED = Exit.TERMINATED
    """SIGTERM was seen: saved, do not requeue."""


# The higher one wins where ranks saw different signals: SIGTERM follows SIGUSR2 when the grace period ends.
_LEVELS = {signal.SIGTERM: 1, signal.SIGUSR2: 2}
_OUTCOMES = (None, Outcome.TERMINATED, Outcome.REQUEUE)


class Preemption:
    """Flag-only handlers of SIGUSR2 and SIGTERM; ``with Preemption() as preemption:`` puts the former ones back.

    Attributes:
        former: the handlers before ours, by signal; a Slurm job chains to submitit's after the save.
    """

    def __init__(self) -> None:
        self.former: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._level = 0

    def install(self) -> "Preemption":
        """Take over both signals. Main thread only, as Python demands."""
        for number in _LEVELS:
            self.former[number] = signal.signal(number, self._note)
        return self

    def restore(self) -> None:
        """Give both signals back to their former handlers."""
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def requested(self, device: torch.device) -> Outcome | None:
        """What the run was asked to do, by a signal to any of its ranks. Collective: call it at the end of a step."""
        level = torch.tensor(self._level, device=device)
        dist.all_reduce(level, op=dist.ReduceOp.MAX)
        return _OUTCOMES[int(level)]

    def __enter__(self) -> "Preemption":
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._level = max(self._level, _LEVELS[signal.Signals(number)])

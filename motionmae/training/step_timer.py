"""Where the seconds of a step go, on this rank: every moment belongs to exactly one phase.

On the CPU the host's clock tells. A GPU works behind the host, so there CUDA events mark where phases meet on its own
time line (waiting for the host included); they are read once a metrics row, and no step waits for them.
"""

import time
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Phase(str, Enum):
    """What a rank does."""

    DATA_WAIT = "data_wait"
    """It waits for a micro-batch."""
    FORWARD = "forward"
    """Copy to the device and forward pass."""
    BACKWARD = "backward"
    """Backward pass with the reduction of gradients: here ranks wait for each other."""
    OPTIMIZER = "optimizer"
    """The update."""
    CHECKPOINT = "checkpoint"
    """Training is held up by a save."""
    OTHER = "other"
    """Schedule, agreement on signals, metrics."""


class Timer(Protocol):
    """Marks moments and tells the seconds between them."""

    def mark(self) -> Any:
        """Mark the present moment."""

    def seconds(self, first: Any, last: Any) -> float:
        """From one mark to a later one."""


class HostTimer:
    """The host's clock."""

    mark = staticmethod(time.perf_counter)

    def seconds(self, first: float, last: float) -> float:
        """From one mark to a later one."""
        return last - first


class CudaTimer:
    """The current CUDA stream's time line."""

    def mark(self) -> "torch.cuda.Event":
        """When the device gets to this point."""
        import torch  # slow; who only names phases need not wait for it

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first: "torch.cuda.Event", last: "torch.cuda.Event") -> float:
        """From one mark to a later one; waits until the device has reached it."""
        last.synchronize()
        return first.elapsed_time(last) / 1000


class StepTimer:
    """Divides the time since the last metrics row among the phases.

    Attributes:
        steps: ended since then.
        slowest_step: host seconds of the longest of them.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._marks: list[tuple[Phase, Any]] = [(Phase.OTHER, timer.mark())]
        self.steps, self.slowest_step = 0, 0.0
        self.begin_step()

    @classmethod
    def of(cls, device: "torch.device") -> "StepTimer":
        """A clock for work on ``device``."""
        return cls(CudaTimer() if device.type == "cuda" else HostTimer())

    def enter(self, phase: Phase) -> None:
        """The phase before ends, ``phase`` begins."""
        self._marks.append((phase, self._timer.mark()))

    def end_step(self) -> None:
        """A step is over."""
        self.steps += 1
        self.slowest_step = max(self.slowest_step, time.perf_counter() - self._step_began)

    def begin_step(self) -> None:
        """A step begins; what lay between it and the one before (a save, a row) is not its time."""
        self._step_began = time.perf_counter()

    def take(self) -> dict[Phase, float]:
        """Seconds in each phase since the last call; begins anew."""
        self.enter(Phase.OTHER)
        spent = dict.fromkeys(Phase, 0.0)
        for (phase, begin), (_, end) in pairwise(self._marks):
            spent[phase] += self._timer.seconds(begin, end)
        self._marks = self._marks[-1:]
        self.steps, self.slowest_step = 0, 0.0
        return spent

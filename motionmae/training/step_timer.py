"""Where the seconds of a step go, on this rank: every moment belongs to exactly one phase.

On the CPU the host's clock tells. A GPU works behind the host, so there CUDA events mark where phases meet on its own
time line (waiting for the host included); they are read once a metrics row, and no step waits for them.
"""

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from motionmae.runs.events import process_age
from motionmae.runs.phases import Phase

if TYPE_CHECKING:
    import torch


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


class StartupTimer:
    """Stops the time of one stage after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"imports": process_age()}
        """Of each stage in its order; the first began with the process."""
        self._began = time.perf_counter()

    def done(self, stage: str) -> None:
        """Say that what happened since the stage before was this one."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._began
        self._began = now

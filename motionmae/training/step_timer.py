"""Timers of this rank's steps, divided into phases, and of the stages of start-up.

Every moment of training belongs to exactly one phase. A GPU runs later than the host: CUDA events in its stream mark
the borders of phases, and the time in which the GPU waits for the host counts too. The events are read once per metrics
row; no step waits for this.
"""

import time
from itertools import pairwise
from typing import Any

import torch

from motionmae.runs.events import Phase, process_age


class HostTimer:
    """Clock of the host, which marks moments and measures the seconds from one mark to a later mark."""

    def mark(self) -> Any:
        return time.perf_counter()

    def seconds(self, first: Any, last: Any) -> float:
        return last - first


class CudaTimer(HostTimer):
    """Clock of the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        last.synchronize()  # waits until the device has reached this mark
        return first.elapsed_time(last) / 1000


class StepTimer:
    """Timer that divides the time since the last metrics row among the phases."""

    def __init__(self, timer: HostTimer) -> None:
        self._timer = timer
        self._marks: list[tuple[Phase, Any]] = [(Phase.OTHER, timer.mark())]
        self.steps = 0  # since the last metrics row
        self.slowest_step = 0.0  # host seconds of the slowest of these steps
        self.begin_step()

    @classmethod
    def of(cls, device: torch.device) -> "StepTimer":
        return cls(CudaTimer() if device.type == "cuda" else HostTimer())

    def enter(self, phase: Phase) -> None:
        self._marks.append((phase, self._timer.mark()))

    def end_step(self) -> None:
        self.steps += 1
        self.slowest_step = max(self.slowest_step, time.perf_counter() - self._step_began)

    def begin_step(self) -> None:
        """Begin a step. Time since the previous step (a save, a metrics row) does not count for ``slowest_step``."""
        self._step_began = time.perf_counter()

    def take(self) -> dict[Phase, float]:
        """Return the seconds in each phase since the last call, and reset."""
        self.enter(Phase.OTHER)
        spent = dict.fromkeys(Phase, 0.0)
        for (phase, begin), (_, end) in pairwise(self._marks):
            spent[phase] += self._timer.seconds(begin, end)
        self._marks = self._marks[-1:]
        self.steps, self.slowest_step = 0, 0.0
        return spent


class StartupTimer:
    """Timer of the stages of start-up, one after the other."""

    def __init__(self) -> None:
        self.seconds = {"imports": process_age()}  # of each stage in order; "imports" began with the process
        self._began = time.perf_counter()

    def done(self, stage: str) -> None:
        """End ``stage``, which began when the previous stage ended."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._began
        self._began = now

"""Time, kernels and memory of work on a device."""

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_ATTENTION = ("flash", "fmha", "sdpa", "attention")  # parts of the names of attention kernels, in any library
_NAME = 160  # characters of a kernel's name: templates of torch differ late


class Kernel(NamedTuple):
    """Kernel or copy on the GPU, in microseconds of the profiler's clock."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / 1e6


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], times: int, device: torch.device) -> float:
    """Return the mean seconds of ``work`` over a number of calls, with the time until the device is done."""
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(times):
        work()
    wait_for(device)
    return (time.perf_counter() - begin) / times


def device_kernels(work: Callable[[], Any]) -> list[Kernel]:
    """Run ``work`` under torch's profiler and return its kernels and copies on the GPU, in order of their begin."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return kernels_of(profiled.events() or [])


def kernels_of(events: Iterable[Any]) -> list[Kernel]:
    """Return the kernels among the events of a profile. Ranges that a program names are no kernels."""
    found = [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return sorted(found, key=lambda kernel: kernel.begin)


def is_attention(kernel: str) -> bool:
    """Return whether a kernel computes attention. Compiled kernels are named after all operators around them."""
    return not kernel.startswith("triton_") and any(part in kernel.lower() for part in _ATTENTION)


def busy_seconds(kernels: Iterable[Kernel]) -> float:
    """Return the seconds in which at least one of the kernels runs."""
    return sum(end - begin for begin, end in _union(kernels)) / 1e6


def shared_seconds(first: Iterable[Kernel], second: Iterable[Kernel]) -> float:
    """Return the seconds in which kernels of both groups run."""
    first, second = list(first), list(second)
    return busy_seconds(first) + busy_seconds(second) - busy_seconds([*first, *second])


def _union(kernels: Iterable[Kernel]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for _, begin, end in sorted(kernels, key=lambda kernel: kernel.begin):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def longest(kernels: Iterable[Kernel], most: int) -> dict[str, float]:
    """Return the milliseconds of the ``most`` kernels that take longest in total, by name."""
    total: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        total[kernel.name[:_NAME]] += 1e3 * kernel.seconds
    return {name: total[name] for name in heapq.nlargest(most, total, key=lambda name: total[name])}

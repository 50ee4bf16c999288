"""Check that the copies of micro-batches to the GPU overlap with its computing."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from motionmae.data.loader import Batch, DevicePrefetcher
from motionmae.data.shared_buffers import SharedBufferPool
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import device_of
from motionmae.gpu_checks.measure import seconds_of, wait_for

_BATCHES = 10
_SHAPE = (32, 16, 224, 224, 3)  # ViT-B's micro-batch
_WIDTH = 4096  # of the matrices that keep the GPU busy
_LEAST_HIDDEN = 0.5  # share of the copies' time that must be hidden


def check_copies(setting: Setting) -> Figures:
    """Time copies alone, computing alone, and both through the loader's prefetcher."""
    device = device_of(setting)
    pool = SharedBufferPool(_SHAPE, np.uint8, pinned=True)
    clips = torch.from_numpy(pool.take().array)
    figures: Figures = {"pinned": clips.is_pinned(), "mb": clips.nbytes / 1e6}
    require(clips.is_pinned(), "the loader's memory is not pinned: copies wait for the host", figures)
    _time_copies(clips, device)  # torch takes the copies' memory from the GPU, which is slow
    issued, alone = _time_copies(clips, device)
    figures |= {"gb_per_s": clips.nbytes / alone / 1e9, "ms_per_batch": 1e3 * alone, "issue_ms": 1e3 * issued}
    require(issued < alone / 2, "copies of pinned memory block the host", figures)
    compute = _work_of(2 * alone, device)
    computing = seconds_of(compute, _BATCHES, device)
    together = _time_together(clips, compute, device)
    hidden = 1 - (together - computing) / alone
    figures |= {"computing_ms": 1e3 * computing, "together_ms": 1e3 * together, "hidden_share": hidden}
    require(hidden > _LEAST_HIDDEN, f"only {hidden:.0%} of the copies' time overlaps with computing", figures)
    return figures


def _time_copies(clips: Tensor, device: torch.device) -> tuple[float, float]:
    """Return the host's seconds to issue a copy, and the seconds of the copy."""
    wait_for(device)
    begin = time.perf_counter()
    copies = [clips.to(device, non_blocking=True) for _ in range(_BATCHES)]
    issued = time.perf_counter() - begin
    wait_for(device)
    return issued / len(copies), (time.perf_counter() - begin) / len(copies)


def _work_of(seconds: float, device: torch.device) -> Callable[[], None]:
    """Return matrix products that keep the GPU busy for about ``seconds``."""
    left, right = (torch.randn(_WIDTH, _WIDTH, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds_of(lambda: left @ right, 3, device)
    products = max(1, round(seconds / seconds_of(lambda: left @ right, 10, device)))

    def compute() -> None:
        for _ in range(products):
            torch.mm(left, right)

    return compute


def _time_together(clips: Tensor, compute: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of a batch that is copied by the prefetcher while the GPU computes."""
    numbers = torch.arange(len(clips))

    def batches() -> Iterator[Batch]:
        while True:
            yield Batch(clips, numbers, numbers, numbers, None)

    fetched = DevicePrefetcher(device)(batches())

    def step() -> None:
        next(fetched)
        compute()

    seconds_of(step, _BATCHES, device)  # as above
    return seconds_of(step, _BATCHES, device)

"""The C library's memory for training on a CPU."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, so that the next step takes the same pages; whether it does now.

    By default it maps blocks beyond 32 MiB afresh each time and gives the end of the heap back at once. Activations
    and gradients come and go in every step, and the kernel zeroes their pages each time: without that, DeepSpeed's
    share of a step halves and a model's own is some per cent shorter (docs/performance.md). The process then keeps
    its peak until it ends. Whoever sets glibc's own variables (MALLOC_*, GLIBC_TUNABLES) is left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))

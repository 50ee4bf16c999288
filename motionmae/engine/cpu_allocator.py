"""Settings of glibc's memory allocator for training on a CPU."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # constants of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory in the process; return False if glibc could not be set up for this.

    By default glibc maps blocks beyond 32 MiB anew for each allocation and returns the end of the heap to the kernel.
    Activations and gradients are allocated in every step, and the kernel zeroes their pages each time. Keeping freed
    memory halves DeepSpeed's share of a step and shortens the model's own by some per cent (docs/performance.md). The
    process keeps its peak memory until it ends. If the environment sets MALLOC_* or GLIBC_TUNABLES, nothing is changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))

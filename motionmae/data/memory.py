"""Memory of micro-batches, used again as soon as nobody looks at it.

A micro-batch of 32 clips has 77 MB. Fresh pages for each cost 1.7 ms a clip on this project's test machines, a quarter
of the time that decoding the clip takes, so blocks are kept.
"""

import weakref

import numpy as np
import torch


class ClipMemory:
    """Hands out tensors of one shape and type; a block returns when the last tensor or view on it is gone.

    With CUDA the tensors are pinned and come from torch's own caching allocator, which also waits for copies to the
    device that are still under way.

    Args:
        shape: of every tensor.
        dtype: of every tensor.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        self._shape = shape
        self._dtype = dtype
        self._pinned = torch.cuda.is_available()
        self._free: list[np.ndarray] = []

    def take(self) -> torch.Tensor:
        """A tensor with arbitrary content."""
        if self._pinned:
            return torch.empty(self._shape, dtype=self._dtype, pin_memory=True)
        try:
            block = self._free.pop()
        except IndexError:
            block = torch.empty(self._shape, dtype=self._dtype).numpy()
        view = block.view()  # the tensor holds this object, so its end is the tensor's end
        weakref.finalize(view, self._free.append, block).atexit = False
        return torch.from_numpy(view)

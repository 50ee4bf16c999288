"""Memory of micro-batches: shared with the decoding processes, used again as soon as nobody looks at it.

A micro-batch of 32 clips has 77 MB. Fresh pages for each cost 1.7 ms a clip on this project's test machines, a quarter
of the time that decoding the clip takes, so blocks are kept.
"""

import os
import weakref

import numpy as np
import torch

from motionmae.data.decode_workers import map_block

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class SharedBufferPool:
    """Hands out tensors of one shape and type; a block returns when the last tensor or view on it is gone.

    With CUDA the blocks are pinned. Who copies one to a device keeps it until the copy is done.

    Args:
        shape: of every tensor.
        dtype: of every tensor.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        self._shape = shape
        self._dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._pinned = torch.cuda.is_available()
        self._free: list[np.ndarray] = []
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)

    def take(self) -> torch.Tensor:
        """A tensor with arbitrary content."""
        try:
            block = self._free.pop()
        except IndexError:
            block = self._new()
        view = block.view()  # the tensor holds this object, so its end is the tensor's end
        weakref.finalize(view, self._free.append, block).atexit = False
        return torch.from_numpy(view)

    def file(self, array: np.ndarray) -> int:
        """The file descriptor of the block that lies at the beginning of ``array``, for another process to map."""
        return self._files[array.ctypes.data]

    def _new(self) -> np.ndarray:
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        file = os.memfd_create("clips")
        os.ftruncate(file, size)
        block = map_block(file, self._shape, self._dtype)
        if self._pinned:
            address, cudart = block.ctypes.data, torch.cuda.cudart()
            torch.cuda.check_error(cudart.cudaHostRegister(address, size, _PORTABLE))
            weakref.finalize(block, cudart.cudaHostUnregister, address).atexit = False  # before it is unmapped
        self._files[block.ctypes.data] = file
        return block


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)

"""Copy the next micro-batch to the device while the device computes on the current one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from motionmae.data.loader import Batch


class _Copy(NamedTuple):
    """A copy in progress."""

    original: Batch  # keeps the CPU memory: the loader must not reuse it before the copy is done
    target: Batch
    done: Any  # event of the copy stream


class DevicePrefetcher:
    """Copies each batch on a separate stream during the computation on the previous batch.

    Args:
        streams: module with streams and events; by default torch's module of the device.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self._device = device
        self._streams: Any = streams or (None if device.type == "cpu" else torch.get_device_module(device))
        self._copy_stream: Any = self._streams.Stream() if self._streams else None

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches on the device. On a CPU they are not copied."""
        return batches if self._streams is None else self._prefetch(batches)

    def _prefetch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            copy = self._start_copy(next(batches))
            while True:
                next_copy = self._start_copy(next(batches))
                yield self._wait_on_device(copy)
                copy.done.synchronize()  # started one batch ago: hardly ever a wait
                copy = next_copy
        finally:
            self._copy_stream.synchronize()  # the loader may now reuse the memory of batches that were not used

    def _start_copy(self, batch: Batch) -> _Copy:
        with self._streams.stream(self._copy_stream):
            target = batch.to(self._device)
            done = self._streams.Event()
            done.record()
        return _Copy(batch, target, done)

    def _wait_on_device(self, copy: _Copy) -> Batch:
        """Make work that is queued from now on wait for the copy. The host does not wait."""
        compute_stream = self._streams.current_stream()
        compute_stream.wait_event(copy.done)
        for tensor in (copy.target.clips, copy.target.labels, copy.target.seeds, copy.target.flow):
            if tensor is not None:
                tensor.record_stream(compute_stream)  # the allocator must not reuse the memory while it is read
        return copy.target

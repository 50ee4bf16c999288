"""Copy the next micro-batch to the device while the device computes with the current micro-batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from motionmae.data.loader import Batch


class _Copy(NamedTuple):
    """A copy in progress."""

    original: Batch  # keeps the pinned memory alive: the loader must not reuse it before the copy is done
    target: Batch
    done: Any  # event on the copy stream, recorded after the copy


class DevicePrefetcher:
    """Copies each batch on a separate stream while the device computes with the previous batch.

    Args:
        streams: module with ``Stream`` and ``Event``, by default ``torch.cuda`` or the module of another device type.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self._device = device
        self._streams: Any = streams or (None if device.type == "cpu" else torch.get_device_module(device))
        self._copy_stream: Any = self._streams.Stream() if self._streams else None

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches on the device. If the device is the CPU, yield them without a copy."""
        return batches if self._streams is None else self._prefetch(batches)

    def _prefetch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            copy = self._start_copy(next(batches))
            while True:
                next_copy = self._start_copy(next(batches))
                yield self._wait_on_device(copy)
                copy.done.synchronize()  # hardly ever waits, because the copy started one batch ago
                copy = next_copy
        finally:
            self._copy_stream.synchronize()  # afterwards the loader may reuse the memory of unused batches

    def _start_copy(self, batch: Batch) -> _Copy:
        with self._streams.stream(self._copy_stream):
            target = batch.to(self._device)
            done = self._streams.Event()
            done.record()
        return _Copy(batch, target, done)

    def _wait_on_device(self, copy: _Copy) -> Batch:
        """Make the compute stream wait for the copy, and return the copied batch. The host does not wait."""
        compute_stream = self._streams.current_stream()
        compute_stream.wait_event(copy.done)
        for tensor in (copy.target.clips, copy.target.labels, copy.target.seeds, copy.target.flow):
            if tensor is not None:
                tensor.record_stream(compute_stream)  # the allocator must not reuse memory that this stream still reads
        return copy.target

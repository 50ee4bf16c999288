"""Copies of micro-batches to the device, while it computes on the one before."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from motionmae.data.loader import Batch


class _Copy(NamedTuple):
    """A copy that is under way."""

    here: Batch
    """Whose memory the loader must not fill again before the copy is done."""
    there: Batch
    done: Any
    """An event of the side stream."""


class DevicePrefetcher:
    """Copies batches on a stream of their own, each while the one before is computed on.

    Args:
        device: where to.
        streams: what has streams: torch's module of the device, unless a test brings its own.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self._device = device
        self._streams: Any = streams or (None if device.type == "cpu" else torch.get_device_module(device))
        self._side: Any = self._streams.Stream() if self._streams else None

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches on the device; on a CPU they are there already."""
        return batches if self._streams is None else self._ahead(batches)

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            copy = self._begin(next(batches))
            while True:
                following = self._begin(next(batches))
                yield self._handed_out(copy)
                copy.done.synchronize()  # begun a batch ago and behind no computation: hardly ever a wait
                copy = following
        finally:
            self._side.synchronize()  # memory of batches that nobody takes any more goes, too

    def _begin(self, batch: Batch) -> _Copy:
        with self._streams.stream(self._side):
            there = batch.to(self._device)
            done = self._streams.Event()
            done.record()
        return _Copy(batch, there, done)

    def _handed_out(self, copy: _Copy) -> Batch:
        """The batch there. Work that is queued from now on waits for the copy, the host does not."""
        computing = self._streams.current_stream()
        computing.wait_event(copy.done)
        for tensor in (copy.there.clips, copy.there.labels, copy.there.seeds, copy.there.flow):
            if tensor is not None:
                tensor.record_stream(computing)  # or its memory could be given out again while it is still read
        return copy.there

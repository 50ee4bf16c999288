"""Copies of micro-batches to the device, beside what the device still computes."""

from typing import Any

import torch

from motionmae.data.loader import Batch


class Upload:
    """Copies batches on a stream of their own, so that a copy need not wait for the step before it to end.

    Args:
        device: where to.
        streams: what has streams: torch's module of the device, unless a test brings its own.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self._device = device
        self._streams = streams or (None if device.type == "cpu" else torch.get_device_module(device))
        self._side = self._streams.Stream() if self._streams else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device. Work that is queued from now on waits for it, the host does not.

        The caller's batch may go at once: its memory is used again after the work queued by then, which waits for the
        copy (:class:`motionmae.data.memory.ClipMemory`).
        """
        if self._streams is None:
            return batch.to(self._device)
        with self._streams.stream(self._side):
            there = batch.to(self._device)
        computing = self._streams.current_stream()
        computing.wait_stream(self._side)
        for tensor in (there.clips, there.labels, there.seeds, there.flow):
            if tensor is not None:
                tensor.record_stream(computing)  # or its memory could be given out again while it is still read
        return there

"""Protocol of the decoders, which fill a batch with random clips, and the decoder of shards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clips import read_random_clip
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import SampleMeta, ShardReader
from motionmae.data.shared_buffers import SharedBuffer

if TYPE_CHECKING:
    from motionmae.data.rand_augment import ClipAugment


class ClipRequest(NamedTuple):
    """One clip to decode."""

    row: int  # index of the clip in the batch
    seed: int
    epoch: int
    sample: int  # sample id
    repeat: int  # number of the clip among the clips of its sample (data.repeated_sampling), from 0

    @property
    def random(self) -> KeyedRandom:
        """Random generator of frames, crop and flip. Every decoder draws the same numbers from this generator."""
        return KeyedRandom("clip", self.seed, self.epoch, self.sample, self.repeat)

    @property
    def augment_random(self) -> KeyedRandom:
        """Random generator of RandAugment and random erasing."""
        return KeyedRandom("augment", self.seed, self.epoch, self.sample, self.repeat)


class ClipDecoder(Protocol):
    """Decodes random clips of stored samples."""

    threads: int  # number of threads that may call :meth:`decode_into` at the same time

    @property
    def reader(self) -> ShardReader | None:
        """Reader of the shards; None if the decoder reads an FFCV file."""

    def decode_into(
        self, requests: Sequence[ClipRequest], clips: SharedBuffer, flows: SharedBuffer | None
    ) -> list[SampleMeta | CorruptSample]:
        """Decode each requested clip into its row of the batch.

        Args:
            clips: uint8 (batch, T, size, size, 3).
            flows: float16 (batch, T, size, size, 2); None if the optical flow is not needed.

        Returns:
            For each request, the index entry of its sample, or the reason why it cannot be used.
        """

    def close(self) -> None:
        """Release files, threads and processes. May be called more than once."""


def clip_augment(data: DataConfig, clip: ClipConfig) -> "ClipAugment | None":
    """Return RandAugment and random erasing as one transform, or None if the configuration uses neither."""
    if not data.rand_augment and not data.random_erasing:
        return None
    from motionmae.data.rand_augment import ClipAugment  # timm is slow to import, and pre-training does not need it

    return ClipAugment(data, clip.size)


class ShardDecoder:
    """:class:`ClipDecoder` of shards. It decodes in the calling thread."""

    def __init__(self, reader: ShardReader, data: DataConfig, clip: ClipConfig):
        self.threads = data.threads
        self.reader = reader
        self._data, self._clip = data, clip
        self._augment = clip_augment(data, clip)

    def decode_into(
        self, requests: Sequence[ClipRequest], clips: SharedBuffer, flows: SharedBuffer | None
    ) -> list[SampleMeta | CorruptSample]:
        outcomes: list[SampleMeta | CorruptSample] = []
        for request in requests:
            out = clips.array[request.row]
            flow = None if flows is None else flows.array[request.row]
            try:
                meta = read_random_clip(self.reader, request.sample, self._data, self._clip, request.random, out, flow)
            except CorruptSample as fault:
                outcomes.append(fault)
                continue
            outcomes.append(meta)
            if self._augment:
                self._augment(out, request.augment_random)
        return outcomes

    def close(self) -> None:
        self.reader.close()

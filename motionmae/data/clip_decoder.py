"""Where a loader's clips come from, behind one Protocol: a folder of shards, or an FFCV file made from it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clips import fill_random_clip
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta, ShardReader

if TYPE_CHECKING:
    from motionmae.data.rand_augment import ClipAugment

_MOST_OPEN_SHARDS = 512  # half of the usual limit of open files


class ClipRequest(NamedTuple):
    """One clip to be cut."""

    row: int
    """Which clip of the batch it becomes."""
    seed: int
    """Of the run."""
    epoch: int
    """From 0."""
    sample: int
    """Id of its sample."""
    repeat: int
    """From 0, where a sample gives several clips."""

    @property
    def random(self) -> KeyedRandom:
        """What frames, crop and flip are drawn from: the same in every source."""
        return KeyedRandom("clip", self.seed, self.epoch, self.sample, self.repeat)

    @property
    def augment_random(self) -> KeyedRandom:
        """What RandAugment and random erasing are drawn from."""
        return KeyedRandom("augment", self.seed, self.epoch, self.sample, self.repeat)


class ClipDecoder(Protocol):
    """Cuts random clips out of stored samples."""

    threads: int
    """Threads that may call :meth:`fill` at a time."""

    @property
    def reader(self) -> ShardReader | None:
        """What reads the shards; None for another kind of file."""

    def decode_into(
        self, wanted: Sequence[ClipRequest], clips: np.ndarray, flows: np.ndarray | None
    ) -> list[SampleMeta | CorruptSample]:
        """Cut clips into a batch.

        Args:
            wanted: which clips.
            clips: uint8 (batch, T, size, size, 3), whose wanted rows are filled.
            flows: float16 (batch, T, size, size, 2), filled where wanted.

        Returns:
            For each wanted clip, what is known of its sample, or what is wrong with it.
        """

    def close(self) -> None:
        """End what it started; may be called again."""


def clip_augment(data: DataConfig, clip: ClipConfig) -> "ClipAugment | None":
    """What changes clips beyond crop and flip, where something does.

    Raises:
        UserError: see :class:`motionmae.data.rand_augment.ClipAugment`.
    """
    if not data.rand_augment and not data.random_erasing:
        return None
    from motionmae.data.rand_augment import ClipAugment  # timm is slow to import, and pre-training needs none of it

    return ClipAugment(data, clip.size)


class ShardSource:
    """Clips out of a folder of shards (:class:`ClipDecoder`).

    Args:
        data: the folder, and how clips are cut.
        clip: frames, stride, size.
        manifest: of the folder.

    Raises:
        UserError: shards that the manifest names are not there.
    """

    def __init__(self, data: DataConfig, clip: ClipConfig, manifest: Manifest):
        self.threads = data.threads
        self._data, self._clip = data, clip
        self._augment = clip_augment(data, clip)
        self.reader = ShardReader(data.shards, manifest, min(2 * data.shuffle_window_shards, _MOST_OPEN_SHARDS), data)

    def decode_into(
        self, wanted: Sequence[ClipRequest], clips: np.ndarray, flows: np.ndarray | None
    ) -> list[SampleMeta | CorruptSample]:
        """See :meth:`ClipDecoder.fill`."""
        outcomes: list[SampleMeta | CorruptSample] = []
        for one in wanted:
            into = clips[one.row], None if flows is None else flows[one.row]
            try:
                outcomes.append(fill_random_clip(self.reader, one.sample, self._data, self._clip, one.random, *into))
            except CorruptSample as fault:
                outcomes.append(fault)
                continue
            if self._augment:
                self._augment(into[0], one.augment_random)
        return outcomes

    def close(self) -> None:
        """End transfers that are under way and close the shards."""
        self.reader.close()

"""Decode clips of stored samples: random clips into the rows of a batch, or the middle clip of one sample."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_sampling import Cut, central_cut, random_cut
from motionmae.data.flow import decode_flow
from motionmae.data.jpeg import Target, decode_clips
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shared_buffers import SharedBuffer

if TYPE_CHECKING:  # decoding processes do not import these modules, which are slow to import
    import torch

    from motionmae.data.rand_augment import ClipAugment


_ALWAYS = nullcontext()


class ClipRequest(NamedTuple):
    """Random clip to decode."""

    row: int  # index of the clip in the batch
    seed: int
    epoch: int
    sample: int  # sample id
    repeat: int  # number of the clip among the clips of its sample (data.repeated_sampling), from 0

    def cut(self, meta: SampleMeta, data: DataConfig, clip: ClipConfig) -> Cut:
        """Draw frames, crop and flip. Every decoder draws the same."""
        frames, crop = random_cut(meta, data, clip, self._random(self.repeat))
        if data.share_frames and self.repeat:
            frames, _ = random_cut(meta, data, clip, self._random(0))
        return frames, crop

    def _random(self, repeat: int) -> KeyedRandom:
        return KeyedRandom("clip", self.seed, self.epoch, self.sample, repeat)

    @property
    def augment_random(self) -> KeyedRandom:
        """Generator of RandAugment and random erasing."""
        return KeyedRandom("augment", self.seed, self.epoch, self.sample, self.repeat)


class SampleReader(Protocol):
    """Reader of samples by their ids: motionmae.data.shards.reader.ShardReader, or the reader of an FFCV file.

    The methods raise CorruptSample if a sample is missing or damaged.
    """

    manifest: Manifest

    def read_meta(self, sample_id: int) -> SampleMeta:
        """Read the values that determine possible frames and crops."""

    def read_frames(self, sample_id: int, frame_indices: Sequence[int]) -> Sequence[bytes | memoryview]:
        """Read stored frames in the order of ``frame_indices``. A repeated frame is the same object."""

    def read_flow(self, sample_id: int, frame_indices: Sequence[int]) -> Sequence[bytes | memoryview]:
        """Read stored flow fields. Raises UserError if the sample has none."""

    def close(self) -> None:
        """Release files and cancel downloads. May be called more than once."""


class ClipDecoder(Protocol):
    """Decoder of random clips of stored samples."""

    threads: int  # number of threads that may call :meth:`decode_into` at the same time

    @property
    def reader(self) -> SampleReader:
        """Reader of the samples in this process."""

    def decode_into(
        self, requests: Sequence[ClipRequest], clips: SharedBuffer, flows: SharedBuffer | None
    ) -> list[SampleMeta | CorruptSample]:
        """Decode the clips into their rows of ``clips``, uint8 (batch, T, size, size, 3), and their optical flow.

        ``flows`` is float16 (batch, T, size, size, 2), or None if the flow is not needed. Return for each request the
        index entry of its sample, or the error if the sample is corrupt.
        """

    def close(self) -> None:
        """Release files, threads and processes. May be called more than once."""


class SampleDecoder:
    """:class:`ClipDecoder` that decodes in the calling thread."""

    def __init__(self, reader: SampleReader, data: DataConfig, clip: ClipConfig):
        self.threads = data.threads
        self.reader = reader
        self._data, self._clip = data, clip
        self._augment = _clip_augment(data, clip)
        self.turn: AbstractContextManager[object] = _ALWAYS
        """Entered to decode. With a lock, one thread decodes at a time, while others wait for the disk."""

    def decode_into(
        self, requests: Sequence[ClipRequest], clips: SharedBuffer, flows: SharedBuffer | None
    ) -> list[SampleMeta | CorruptSample]:
        outcomes: list[SampleMeta | CorruptSample] = []
        for sample, group in groupby(requests, lambda request: request.sample):
            repeats = list(group)
            try:
                meta = self.reader.read_meta(sample)
                cuts = [request.cut(meta, self._data, self._clip) for request in repeats]
                targets = [Target(*cut, clips.array[one.row]) for one, cut in zip(repeats, cuts, strict=True)]
                fields = [flows.array[one.row] for one in repeats] if flows else []
                _decode(self.reader, sample, meta, targets, fields, self.turn)
            except CorruptSample as fault:
                outcomes.extend([fault] * len(repeats))
                continue
            outcomes.extend([meta] * len(repeats))
            if self._augment:
                for request in repeats:
                    self._augment(clips.array[request.row], request.augment_random)
        return outcomes

    def close(self) -> None:
        self.reader.close()


def read_clip(reader: SampleReader, sample_id: int, clip: ClipConfig, flow: np.ndarray | None = None) -> "torch.Tensor":
    """Decode the middle clip of a sample and crop its central square: uint8 (T, size, size, 3).

    If given, ``flow``, float16 (T, size, size, 2), is filled. Raises CorruptSample if the sample is damaged, and
    UserError if the sample does not exist or the shards lack the stride or the flow.
    """
    import torch

    meta = reader.read_meta(sample_id)
    pixels = np.empty((clip.frames, clip.size, clip.size, 3), np.uint8)
    target = Target(*central_cut(meta, clip), pixels)
    _decode(reader, sample_id, meta, [target], [] if flow is None else [flow])
    return torch.from_numpy(pixels)


def read_frames(reader: SampleReader, sample: int, targets: Sequence[Target]) -> dict[int, bytes | memoryview]:
    """Read the stored frames of clips of one sample, by their numbers. A frame of several clips is read once."""
    numbers = sorted({number for target in targets for number in target.frames})
    return dict(zip(numbers, reader.read_frames(sample, numbers), strict=True))


def _clip_augment(data: DataConfig, clip: ClipConfig) -> "ClipAugment | None":
    """Return RandAugment and random erasing as one transform, or None if the configuration uses neither."""
    if not data.rand_augment and not data.random_erasing:
        return None
    from motionmae.data.rand_augment import ClipAugment

    return ClipAugment(data, clip.size)


def _decode(
    reader: SampleReader,
    sample: int,
    meta: SampleMeta,
    targets: Sequence[Target],
    flows: Sequence[np.ndarray],
    turn: AbstractContextManager[object] = _ALWAYS,
) -> None:
    """Fill the targets, and if flows are given, the flow of each target. ``turn`` is entered after the read."""
    frames = read_frames(reader, sample, targets)
    with turn:
        decode_clips(frames, meta, targets)
    for target, flow in zip(targets, flows, strict=False):
        for field, out in zip(reader.read_flow(sample, target.frames), flow, strict=True):
            decode_flow(field, meta, target.crop, out)

"""One clip of one sample: choose its frames and its crop, read, decode."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.crops import Crop, central_crop, random_crop
from motionmae.data.flow import decode_flow
from motionmae.data.jpeg import decode_clip
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.reader import SampleMeta, ShardReader
from motionmae.data.temporal_sampling import central_frames, random_frames, segment_frames

if TYPE_CHECKING:
    import torch  # decoding processes do without it


def random_cut(meta: SampleMeta, data: DataConfig, clip: ClipConfig, random: KeyedRandom) -> tuple[list[int], Crop]:
    """The stored frames of one random training clip, and the crop of all of them; the clip's only draws."""
    choose = segment_frames if data.sampling == "segments" else random_frames
    return choose(meta, clip, random), random_crop(meta.height, meta.width, clip.size, data, random)


def fill_random_clip(
    reader: ShardReader,
    sample_id: int,
    data: DataConfig,
    clip: ClipConfig,
    random: KeyedRandom,
    out: np.ndarray,
    flow: np.ndarray | None = None,
) -> SampleMeta:
    """Cut a random training clip out of a sample, into memory the caller owns.

    Args:
        reader: the shards.
        sample_id: which sample.
        data: crop and flip.
        clip: frames, stride, size.
        random: keyed by (seed, epoch, sample, repeat); the clip depends on nothing else.
        out: uint8 (T, size, size, 3), filled.
        flow: float16 (T, size, size, 2), filled where wanted.

    Returns:
        What the index says of the sample.

    Raises:
        CorruptSample: the sample is not what was written.
    """
    meta = reader.read_meta(sample_id)
    frames, crop = random_cut(meta, data, clip, random)
    _fill(reader, sample_id, meta, frames, crop, out, flow)
    return meta


def read_clip(
    source: Path | str | ShardReader, sample_id: int, clip: ClipConfig, flow: np.ndarray | None = None
) -> "torch.Tensor":
    """The clip in the middle of a sample, cut to its central square: uint8 (T, size, size, 3), always the same.

    Args:
        source: folder of shards, or a reader of it.
        sample_id: which sample, 0 to the manifest's samples - 1.
        clip: frames, stride, size.
        flow: float16 (T, size, size, 2), filled where wanted.

    Raises:
        CorruptSample: the sample is not what was written; nothing else is put in its place.
        UserError: no such folder, sample, stride or flow.
    """
    import torch

    reader = source if isinstance(source, ShardReader) else ShardReader(source)
    meta = reader.read_meta(sample_id)
    pixels = np.empty((clip.frames, clip.size, clip.size, 3), np.uint8)
    _fill(reader, sample_id, meta, central_frames(meta, clip), central_crop(meta.height, meta.width), pixels, flow)
    return torch.from_numpy(pixels)


def _fill(
    reader: ShardReader,
    sample_id: int,
    meta: SampleMeta,
    frames: list[int],
    crop: Crop,
    out: np.ndarray,
    flow: np.ndarray | None,
) -> None:
    decode_clip(reader.read_frames(sample_id, frames), meta, crop, out)
    if flow is not None:
        for field, target in zip(reader.read_flow(sample_id, frames), flow, strict=True):
            decode_flow(field, meta, crop, target)

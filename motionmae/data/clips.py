"""Read one clip of a sample: choose its frames and its crop, then read and decode the frames."""

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
    import torch  # decoding processes do not import it


def random_cut(meta: SampleMeta, data: DataConfig, clip: ClipConfig, random: KeyedRandom) -> tuple[list[int], Crop]:
    """Draw the stored frames and the crop of one training clip; ``random`` is used for nothing else."""
    choose = segment_frames if data.sampling == "segments" else random_frames
    return choose(meta, clip, random), random_crop(meta.height, meta.width, clip.size, data, random)


def read_random_clip(
    reader: ShardReader,
    sample_id: int,
    data: DataConfig,
    clip: ClipConfig,
    random: KeyedRandom,
    out: np.ndarray,
    flow: np.ndarray | None = None,
) -> SampleMeta:
    """Decode a random training clip of a sample into ``out``.

    Args:
        random: generator keyed by (seed, epoch, sample, repeat), the only source of randomness of the clip.
        out: uint8 (T, size, size, 3), filled.
        flow: float16 (T, size, size, 2), filled if given.

    Raises:
        CorruptSample: the sample is damaged.
    """
    meta = reader.read_meta(sample_id)
    frames, crop = random_cut(meta, data, clip, random)
    _decode(reader, sample_id, meta, frames, crop, out, flow)
    return meta


def read_clip(reader: ShardReader, sample_id: int, clip: ClipConfig, flow: np.ndarray | None = None) -> "torch.Tensor":
    """Decode the middle clip of a sample and crop its central square: uint8 (T, size, size, 3).

    Args:
        flow: float16 (T, size, size, 2), filled if given.

    Raises:
        CorruptSample: the sample is damaged. No other sample replaces it.
        UserError: the sample does not exist, or the shards lack the stride or the flow.
    """
    import torch

    meta = reader.read_meta(sample_id)
    pixels = np.empty((clip.frames, clip.size, clip.size, 3), np.uint8)
    _decode(reader, sample_id, meta, central_frames(meta, clip), central_crop(meta.height, meta.width), pixels, flow)
    return torch.from_numpy(pixels)


def _decode(
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

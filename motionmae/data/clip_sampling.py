"""Choose the stored frames and the crop of a clip.

Dense sampling takes frames at a fixed stride from a random start, as VideoMAE does. Segment sampling takes one random
frame from each of ``clip.frames`` equal parts of the video. It suits SSv2, whose classes need the whole action.

``clip.stride`` counts source frames. A shard stores every ``SampleMeta.stride``-th source frame, and a clip takes every
``clip.stride / SampleMeta.stride``-th stored frame. A start is possible if the whole clip fits in one stored window. If
the video is shorter than the clip, the clip starts at the first frame and repeats the last frame that the stride
reaches, as VideoMAE does.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError

_ATTEMPTS = 10
_SCALES = (1.0, 0.875, 0.75, 0.66)  # MultiScaleCrop's fractions of the short side
_SNAP = 3  # MultiScaleCrop uses the output size if the scaled size differs from it by fewer than 3 pixels


@dataclass(frozen=True)
class Crop:
    """Rectangle of the stored frame in pixels. ``flip`` mirrors the rectangle left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


Cut = tuple[list[int], Crop]  # stored frames and crop of a clip


def random_cut(meta: SampleMeta, data: DataConfig, clip: ClipConfig, random: KeyedRandom) -> Cut:
    """Draw the stored frames and the crop of a training clip from ``random``, a new generator of the clip."""
    choose = segment_frames if data.sampling == "segments" else random_frames
    return choose(meta, clip, random), random_crop(meta.height, meta.width, clip.size, data, random)


def central_cut(meta: SampleMeta, clip: ClipConfig) -> Cut:
    """Return the frames and the central square of the middle clip."""
    return central_frames(meta, clip), central_crop(meta.height, meta.width)


def stored_step(clip: ClipConfig, stored_stride: int) -> int:
    """Return the stride of a clip in stored frames. Raises UserError if the shards lack frames that the clip needs."""
    if clip.stride % stored_stride:
        raise UserError(
            f"clip.stride={clip.stride} is not a multiple of the shards' stride, {stored_stride}: set clip.stride to a "
            "multiple, or make shards with a smaller --stride"
        )
    return clip.stride // stored_stride


def check_windows(manifest: Manifest, shards: Path | str, clip: ClipConfig) -> None:
    """Raise UserError if a clip does not fit in the stored windows, or the shards lack frames that the clip needs."""
    encoder = manifest.encoder
    needed = (clip.frames - 1) * stored_step(clip, encoder.stride) + 1
    stored = encoder.window // encoder.stride  # stored frames of a window
    if encoder.window and stored < needed:
        raise UserError(
            f"the shards of {shards} hold windows of {stored} frames (--window {encoder.window} at --stride "
            f"{encoder.stride}), but clip.frames={clip.frames} at clip.stride={clip.stride} needs {needed} frames: "
            f"decrease clip.frames or clip.stride, or make shards with --window {needed * encoder.stride}"
        )


def _windows(meta: SampleMeta, span: int) -> list[tuple[int, int, int]]:
    """Return the first frame, length, and number of possible starts of a clip of ``span`` frames for each window."""
    bounds = zip(meta.windows, (*meta.windows[1:], meta.frames), strict=True)
    return [(low, high - low, max(0, high - low - span + 1)) for low, high in bounds]


def _frames(start: int, end: int, frames: int, step: int) -> list[int]:
    """Return ``frames`` frame numbers from ``start`` at stride ``step``, repeating the last number before ``end``."""
    reachable = (end - start - 1) // step
    return [start + step * min(number, reachable) for number in range(frames)]


def random_frames(meta: SampleMeta, clip: ClipConfig, random: KeyedRandom) -> list[int]:
    """Choose the stored frames of one random clip. Every possible start is equally likely."""
    step = stored_step(clip, meta.stride)
    windows = _windows(meta, (clip.frames - 1) * step + 1)
    # always draw exactly one number, so that the crop gets the same random numbers in every case
    pick = random.below(max(1, sum(starts for _, _, starts in windows)))
    for low, length, starts in windows:
        if pick < starts:
            return _frames(low + pick, low + length, clip.frames, step)
        pick -= starts
    low, length, _ = max(windows, key=lambda window: window[1])
    return _frames(low, low + length, clip.frames, step)


def segment_frames(meta: SampleMeta, clip: ClipConfig, random: KeyedRandom) -> list[int]:
    """Choose a random stored frame of each of ``clip.frames`` equal parts. A short video repeats some frames."""
    bounds = [part * meta.frames // clip.frames for part in range(clip.frames + 1)]
    return [low + random.below(max(1, high - low)) for low, high in itertools.pairwise(bounds)]


def central_frames(meta: SampleMeta, clip: ClipConfig) -> list[int]:
    """Choose the middle frames of the longest window. Of equally long windows, the most central one is taken."""
    step = stored_step(clip, meta.stride)
    windows = _windows(meta, (clip.frames - 1) * step + 1)
    low, length, starts = max(windows, key=lambda window: (window[1], -abs(2 * window[0] + window[1] - meta.frames)))
    return _frames(low + max(0, starts - 1) // 2, low + length, clip.frames, step)


def random_crop(height: int, width: int, size: int, data: DataConfig, random: KeyedRandom) -> Crop:
    """Draw the crop of a training clip of ``size`` pixels from stored frames of ``height`` x ``width`` pixels.

    With ``data.flip``, the crop is mirrored with probability 1/2.
    """
    flip = random.uniform() < 0.5  # always drawn first, so that the flip does not depend on other settings
    if data.crop == "multi_scale":
        top, left, h, w = multi_scale(height, width, size, random)
    else:
        top, left, h, w = random_resized(height, width, data.crop_scale, data.crop_ratio, random)
    return Crop(top, left, h, w, flip and data.flip)


def random_resized(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], random: KeyedRandom
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) as torchvision's RandomResizedCrop does.

    The area is uniform in ``scale`` of the frame, and the logarithm of width / height is uniform in ``ratio``. After
    ten draws that do not fit, the crop is the largest central one with an allowed ratio.
    """
    low, high = (math.log(bound) for bound in ratio)
    for _ in range(_ATTEMPTS):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.below(height - h + 1), random.below(width - w + 1), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def multi_scale(height: int, width: int, size: int, random: KeyedRandom) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) as the MultiScaleCrop of TSN and VideoMAE does.

    Height and width are 1, 0.875, 0.75 or 0.66 of the short side, and the two factors are equal or neighbours in this
    list. The crop has one of 13 positions: the corners, the centre, the middles of the sides and of the quarters.
    """
    sides = [int(min(height, width) * scale) for scale in _SCALES]
    sides = [size if abs(side - size) < _SNAP else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[random.below(len(pairs))]
    h, w = min(h, height), min(w, width)  # the output size may exceed the frame by two pixels
    corners = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4)]
    quarters = [(row, column) for row in (1, 3) for column in (1, 3)]
    row, column = (corners + quarters)[random.below(len(corners) + len(quarters))]
    return (height - h) // 4 * row, (width - w) // 4 * column, h, w


def central_crop(height: int, width: int) -> Crop:
    """Return the largest square in the middle of the frame."""
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)

"""Choose the stored frames of a clip.

Dense sampling takes frames at a fixed stride from a random start, as VideoMAE does. Segment sampling takes one random
frame from each of ``clip.frames`` equal parts of the video. It suits SSv2, whose classes need the whole action.

``clip.stride`` counts source frames. A shard stores every ``SampleMeta.stride``-th source frame, and a clip takes every
``clip.stride / SampleMeta.stride``-th stored frame. A start is possible if the whole clip fits in one stored window. If
the video is shorter than the clip, the clip starts at the first frame and repeats the last frame that the stride
reaches, as VideoMAE does.
"""

import itertools
from pathlib import Path

from motionmae.config import ClipConfig
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError


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
    """Return ``frames`` frame numbers from ``start`` at stride ``step``. The last one before ``end`` is repeated."""
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
    """Choose the middle frames of the longest window, or of the most central window among several of this length."""
    step = stored_step(clip, meta.stride)
    windows = _windows(meta, (clip.frames - 1) * step + 1)
    low, length, starts = max(windows, key=lambda window: (window[1], -abs(2 * window[0] + window[1] - meta.frames)))
    return _frames(low + max(0, starts - 1) // 2, low + length, clip.frames, step)

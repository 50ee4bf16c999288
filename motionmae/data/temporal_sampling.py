"""Which stored frames make a training clip.

Dense: a random start at a fixed stride, as VideoMAE samples. Segments: one random frame out of each of ``clip.frames``
equal parts of the video, in order, whatever its length (SSv2, whose classes need a whole action).

``clip.stride`` counts source frames; the shard keeps every ``SampleMeta.stride``-th of them, so a clip takes every
``clip.stride / SampleMeta.stride``-th stored frame. Any start is possible at which the whole clip fits in one stored
window. A video shorter than a clip starts at its first frame and repeats the last frame that the stride reaches,
which is what VideoMAE does.
"""

import itertools
from pathlib import Path

from motionmae.config import ClipConfig
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError


def stored_step(clip: ClipConfig, stored_stride: int) -> int:
    """Distance of a clip's frames in stored frames.

    Raises:
        UserError: if the shard left out frames that the clip needs.
    """
    if clip.stride % stored_stride:
        raise UserError(
            f"clip.stride={clip.stride} is not possible: the shards keep every {stored_stride}th frame, "
            f"so choose a multiple of {stored_stride} or make shards with a smaller stride"
        )
    return clip.stride // stored_stride


def check_windows(manifest: Manifest, shards: Path | str, clip: ClipConfig) -> None:
    """Refuse shards made with ``--clips`` whose windows store fewer frames than a clip reaches over.

    Args:
        manifest: theirs.
        shards: where they are, for the message.
        clip: what is to be cut from them.

    Raises:
        UserError: no clip fits in a window, or as :func:`stored_step`.
    """
    encoder = manifest.encoder
    needed = (clip.frames - 1) * stored_step(clip, encoder.stride) + 1
    stored = encoder.window // encoder.stride  # of the window's source frames
    if encoder.window and stored < needed:
        raise UserError(
            f"the shards of {shards} hold windows of {stored} frames (--window {encoder.window} at --stride "
            f"{encoder.stride}), and clip.frames={clip.frames} at clip.stride={clip.stride} needs {needed} of them: "
            f"lower clip.frames or clip.stride, or make shards with --window {needed * encoder.stride}"
        )


def _windows(meta: SampleMeta, span: int) -> list[tuple[int, int, int]]:
    """(first stored frame, stored frames, possible starts of a clip of ``span`` stored frames) of each window."""
    bounds = zip(meta.windows, (*meta.windows[1:], meta.frames), strict=True)
    return [(low, high - low, max(0, high - low - span + 1)) for low, high in bounds]


def _frames(start: int, end: int, frames: int, step: int) -> list[int]:
    """``frames`` frames from ``start`` at distance ``step``, the last that lies before ``end`` repeated."""
    reachable = (end - start - 1) // step
    return [start + step * min(number, reachable) for number in range(frames)]


def random_frames(meta: SampleMeta, clip: ClipConfig, random: KeyedRandom) -> list[int]:
    """Stored frames of one random clip: ``clip.frames`` of them, every possible start equally likely."""
    step = stored_step(clip, meta.stride)
    windows = _windows(meta, (clip.frames - 1) * step + 1)
    pick = random.below(max(1, sum(starts for _, _, starts in windows)))  # always one draw: later draws keep place
    for low, length, starts in windows:
        if pick < starts:
            return _frames(low + pick, low + length, clip.frames, step)
        pick -= starts
    low, length, _ = max(windows, key=lambda window: window[1])
    return _frames(low, low + length, clip.frames, step)


def segment_frames(meta: SampleMeta, clip: ClipConfig, random: KeyedRandom) -> list[int]:
    """Stored frames of one random clip: one of each of ``clip.frames`` equal parts of the whole video.

    Parts are as equal as whole frames allow; a video with fewer frames than parts repeats some.
    """
    bounds = [part * meta.frames // clip.frames for part in range(clip.frames + 1)]
    return [low + random.below(max(1, high - low)) for low, high in itertools.pairwise(bounds)]


def central_frames(meta: SampleMeta, clip: ClipConfig) -> list[int]:
    """Stored frames of the clip in the middle of the longest window, of several the one nearest the video's middle."""
    step = stored_step(clip, meta.stride)
    windows = _windows(meta, (clip.frames - 1) * step + 1)
    low, length, starts = max(windows, key=lambda window: (window[1], -abs(2 * window[0] + window[1] - meta.frames)))
    return _frames(low + max(0, starts - 1) // 2, low + length, clip.frames, step)

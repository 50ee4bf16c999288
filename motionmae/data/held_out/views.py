"""Choose the frames and crops of a multi-view test (paper section 4) as VideoMAE's published code does."""

from pathlib import Path

import cv2
import numpy as np

from motionmae.config import ClipConfig, Config
from motionmae.data.clip_sampling import stored_step
from motionmae.data.jpeg import decode_frame
from motionmae.data.shards.reader import ShardReader
from motionmae.data.video.read_video import count_frames, read_frames


def dense_views(frames: int, clip_frames: int, step: int, clips: int) -> list[list[int]]:
    """Return the frame numbers of ``clips`` dense clips that cover a video.

    Candidates are every ``step``-th frame of the video. The last candidate is repeated up to the length of a clip. Clip
    k of K starts at the candidate ``int(k * surplus / (K - 1))``, with ``surplus`` the number of candidates beyond one
    clip. A single clip takes the middle candidates.
    """
    candidates = list(range(0, frames, step))
    candidates += [candidates[-1]] * (clip_frames - len(candidates))
    surplus = len(candidates) - clip_frames
    starts = [surplus // 2] if clips == 1 else [number * surplus // (clips - 1) for number in range(clips)]
    return [candidates[start : start + clip_frames] for start in starts]


def segment_views(frames: int, clip_frames: int, clips: int) -> list[list[int]]:
    """Return the frame numbers of ``clips`` interleaved clips, each with one frame from each part of a video.

    The video is divided into ``clip_frames`` equal parts. With ``tick`` the length of a part, clip k of K takes frames
    near ``tick * (part + k / K)``: all frames are sorted and dealt to the clips in turn. A single clip takes the middle
    frame of each part.
    """
    tick = frames / clip_frames
    offsets = [tick / 2] if clips == 1 else [tick * number / clips for number in range(clips)]
    chosen = sorted(int(offset + tick * part) for offset in offsets for part in range(clip_frames))
    return [chosen[number::clips] for number in range(clips)]


def crop_starts(long_side: int, size: int, crops: int) -> list[int]:
    """Return the offsets of ``crops`` square crops of ``size`` along the long side. A single crop is centred."""
    surplus = long_side - size
    return [surplus // 2] if crops == 1 else [number * surplus // (crops - 1) for number in range(crops)]


def clip_views(frames: int, stored_stride: int, config: Config) -> list[list[int]]:
    """Return the frame numbers of all clips of a test, by ``data.sampling``."""
    clip = config.clip
    if config.data.sampling == "segments":
        return segment_views(frames, clip.frames, config.test.clips)
    return dense_views(frames, clip.frames, stored_step(clip, stored_stride), config.test.clips)


def read_views(reader: ShardReader, sample_id: int, config: Config) -> np.ndarray:
    """Read all views of a video: uint8 (clips * crops, T, size, size, 3). The crops of a clip are adjacent."""
    meta = reader.read_meta(sample_id)
    clips = clip_views(meta.frames, meta.stride, config)
    needed = sorted({frame for clip in clips for frame in clip})
    jpegs = reader.read_frames(sample_id, needed)
    images = np.stack([shrink(decode_frame(jpeg, meta), config.clip.size) for jpeg in jpegs])
    indices = [[needed.index(frame) for frame in clip] for clip in clips]
    return cut_views(images, indices, config.clip, config.test.crops)


def read_views_of_file(path: Path, config: Config) -> np.ndarray:
    """Read all views of a video file: uint8 (clips * crops, T, size, size, 3). The crops of a clip are adjacent.

    Raises UnreadableVideo. See :func:`motionmae.data.video.read_video.iterate_frames` for the preprocessing.
    """
    clips = clip_views(count_frames(path), 1, config)
    frames = read_frames(path, (frame for clip in clips for frame in clip), config.clip.size)
    needed = sorted(frames)
    indices = [[needed.index(frame) for frame in clip] for clip in clips]
    return cut_views(np.stack([frames[number] for number in needed]), indices, config.clip, config.test.crops)


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image (H, W, 3) so that its short side is ``size``. The long side is rounded down."""
    height, width = image.shape[:2]
    short = min(height, width)
    method = cv2.INTER_AREA if short > 2 * size else cv2.INTER_LINEAR
    return cv2.resize(image, (width * size // short, height * size // short), interpolation=method)


def cut_views(images: np.ndarray, clips: list[list[int]], clip: ClipConfig, crops: int) -> np.ndarray:
    """Cut all views, (clips * crops, T, S, S, 3), from images uint8 (n, H, W, 3) of short side S = ``clip.size``."""
    size = clip.size
    height, width = images.shape[1:3]
    views = []
    for frames in clips:
        for start in crop_starts(max(height, width), size, crops):
            top, left = (start, 0) if height > width else (0, start)
            views.append(images[frames, top : top + size, left : left + size])
    return np.stack(views)

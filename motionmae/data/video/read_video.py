"""Decode frames of single video files. Training reads shards instead."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from motionmae.config import ClipConfig
from motionmae.data.shards.limits import MAX_SIDE
from motionmae.data.video.open_video import RefusedFormat, open_video
from motionmae.data.video.video_frames import (
    UPRIGHT,
    DecodingNotes,
    NoDecoder,
    NoVideoStream,
    UnsupportedFrame,
    decode_frames,
    find_orientation,
    rescale_to_rgb,
    video_stream,
)

if TYPE_CHECKING:
    import torch

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mj2", ".mkv", ".webm", ".ogv", ".flv", ".rm", ".avi", ".divx"),
        *(".asf", ".wmv", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".gif"),
    }
)
"""Extensions of video files, in lower case."""


class UnreadableVideo(Exception):  # noqa: N818 - names a property of the file, not a failure of the program
    """No frame of the file can be decoded. The message names the file and the reason."""


def read_video(path: Path, short_side: int, stride: int = 1, most: int = 0, first: int = 0) -> np.ndarray:
    """Read every ``stride``-th frame, rotated upright and resized to ``short_side``: uint8 (n, H, W, 3).

    Skip the first ``first`` of these frames, and return at most ``most``, or all if ``most`` is 0. Raises
    UnreadableVideo if no frame is left.
    """
    frames: list[np.ndarray] = []
    scaler = _Scaler(short_side)
    for number, frame in enumerate(_frames(path)):
        if number % stride == 0 and (number == 0 or number >= first * stride):
            try:
                picture = scaler.scale(frame)
            except UnsupportedFrame as error:
                raise UnreadableVideo(f"{path} cannot be read: {error}") from error
            if number >= first * stride:
                frames.append(picture)
        if most and len(frames) == most:
            break
    if not frames:
        raise UnreadableVideo(f"{path} cannot be read: it ends before frame {first * stride}")
    return np.stack(frames)


def read_central_clip(path: Path, clip: ClipConfig) -> "torch.Tensor":
    """Read the clip in the middle of a video and crop its central square: uint8 (T, size, size, 3).

    A video shorter than the clip repeats its last frame. The file is decoded twice: the first pass counts the frames,
    because headers may be wrong. At most one clip is held in memory, because the frames of an hour take gigabytes.

    Raises UnreadableVideo if no frame can be decoded or the file changes between the passes.
    """
    import torch  # slow to import; data_tools needs only the extensions

    total = sum(1 for _ in _frames(path))
    count = -(-total // clip.stride)
    start = max(0, count - clip.frames) // 2
    frames = read_video(path, clip.size, clip.stride, clip.frames, start)
    if len(frames) < min(count, clip.frames):
        raise UnreadableVideo(f"{path} cannot be read: its frame {(start + len(frames)) * clip.stride} does not decode")
    chosen = np.minimum(np.arange(clip.frames), len(frames) - 1)
    top, left = ((side - clip.size) // 2 for side in frames.shape[1:3])
    return torch.from_numpy(frames[chosen, top : top + clip.size, left : left + clip.size].copy())


def _frames(path: Path) -> Iterator[VideoFrame]:
    """Yield the decoded frames of a video. Raises UnreadableVideo if there is no frame."""
    found, notes = False, DecodingNotes()
    try:
        with open_video(path) as container:
            for frame in decode_frames(container, video_stream(container), notes):
                found = True
                yield frame
        detail = str(notes.errors[-1]) if notes.errors else "it holds no frame"
    except (RefusedFormat, NoVideoStream, NoDecoder) as error:
        detail = str(error)
    except (OSError, av.FFmpegError) as error:
        detail = str(error.strerror)
    if not found:
        raise UnreadableVideo(f"{path} cannot be read: {detail}")


class _Scaler:
    """Scaler of the frames of one video to upright RGB, as the ffmpeg program does. The first frame sets the size."""

    def __init__(self, short_side: int):
        self._short_side = short_side
        self._size: tuple[int, int] | None = None
        self._orientation = UPRIGHT
        self._reformatter = VideoReformatter()

    def scale(self, frame: VideoFrame) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises UnsupportedFrame."""
        if self._size is None:
            sides = (frame.width, frame.height)
            width, height = (max(self._short_side, side * self._short_side // min(sides)) for side in sides)
            if max(width, height) > MAX_SIDE:
                frames = f"its frames are {frame.width} x {frame.height} pixels, and {width} x {height} at this size"
                raise UnsupportedFrame(f"{frames}; a side has at most {MAX_SIDE}")
            self._size, self._orientation = (width, height), find_orientation(frame)
        return np.array(self._orientation.make_upright(rescale_to_rgb(self._reformatter, frame, self._size)))

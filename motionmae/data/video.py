"""Frames of a video file, for looking at single videos; training reads shards (data_tools/make_shards)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from motionmae.config import ClipConfig


class UnreadableVideo(Exception):  # noqa: N818 - it names a thing found, not a failure of ours
    """A file of which no frame can be decoded; the text says which and why."""


def read_video(path: Path, short_side: int, stride: int = 1, most: int = 0, first: int = 0) -> np.ndarray:
    """Every ``stride``-th frame, upright, its short side resized: uint8 (n, H, W, 3).

    Args:
        path: the file.
        short_side: pixels.
        stride: distance of the frames that are kept.
        most: frames after which reading stops; 0 reads all.
        first: how many of the frames that would be kept are left out at the beginning.

    Raises:
        UnreadableVideo: there is no such frame.
    """
    frames: list[np.ndarray] = []
    shape: tuple[int, ...] | None = None

    def keep(number: int, frame: Any) -> bool:
        nonlocal shape
        if number % stride == 0 and (number == 0 or number >= first * stride):
            picture = _upright(frame, short_side, shape)
            shape = shape or picture.shape
            if number >= first * stride:
                frames.append(picture)
        return not most or len(frames) < most

    detail = _for_each_frame(path, keep)
    if not frames:
        raise UnreadableVideo(f"{path} cannot be read: {detail}")
    return np.stack(frames)


def read_central_clip(path: Path, clip: ClipConfig) -> torch.Tensor:
    """The clip in the middle of a video, cut to its central square: uint8 (T, size, size, 3).

    A video shorter than a clip repeats its last frame. The file is decoded twice, first to count its frames, as headers
    may be wrong about them, so that never more than a clip is held: frames of an hour take gigabytes.

    Raises:
        UnreadableVideo: as :func:`read_video`, or the file changes meanwhile.
    """
    count = -(-_count_frames(path) // clip.stride)
    start = max(0, count - clip.frames) // 2
    frames = read_video(path, clip.size, clip.stride, clip.frames, start)
    if len(frames) < min(count, clip.frames):
        raise UnreadableVideo(f"{path} cannot be read: its frame {(start + len(frames)) * clip.stride} does not decode")
    chosen = np.minimum(np.arange(clip.frames), len(frames) - 1)
    top, left = ((side - clip.size) // 2 for side in frames.shape[1:3])
    return torch.from_numpy(frames[chosen, top : top + clip.size, left : left + clip.size].copy())


def _count_frames(path: Path) -> int:
    """Frames that decode."""
    count = 0

    def see(number: int, frame: Any) -> bool:
        nonlocal count
        count = number + 1
        return True

    detail = _for_each_frame(path, see)
    if not count:
        raise UnreadableVideo(f"{path} cannot be read: {detail}")
    return count


def _for_each_frame(path: Path, visit: Callable[[int, Any], bool]) -> str:
    """Call ``visit(number, frame)`` for every frame that decodes, until it returns False.

    Packets that do not decode are left out, as the ffmpeg program does.

    Returns:
        What was wrong last, should there have been no frame.

    Raises:
        UnreadableVideo: there is no video stream.
    """
    number, detail = 0, "it holds no frame"
    try:
        # absolute: ffmpeg takes "a:b.mp4" for a protocol; replace: some titles are no UTF-8
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableVideo(f"{path}: it has no video stream")
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except av.EOFError:
                    break
                except av.FFmpegError as error:
                    detail = str(error.strerror)
                    continue
                for frame in decoded:
                    if not visit(number, frame):
                        return detail
                    number += 1
    except (OSError, av.FFmpegError) as error:
        detail = str(error.strerror)
    return detail


def _upright(frame: Any, short_side: int, shape: tuple[int, ...] | None) -> np.ndarray:
    """A frame turned as its display matrix says, in the size of the first (streams may change theirs)."""
    picture: Any = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
    scale = short_side / min(picture.shape[:2])
    height, width = shape[:2] if shape else (max(short_side, int(side * scale)) for side in picture.shape[:2])
    method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method)

"""Decode frames of single video files. Training reads shards instead."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np

from motionmae.config import ClipConfig
from motionmae.data.open_video import RefusedFormat, open_video

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
    shape: tuple[int, ...] | None = None
    for number, frame in enumerate(_frames(path)):
        if number % stride == 0 and (number == 0 or number >= first * stride):
            try:
                picture = _upright(frame, short_side, shape)
            except av.FFmpegError as error:
                raise UnreadableVideo(f"{path} cannot be read: {error.strerror} at frame {number}") from error
            shape = shape or picture.shape
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


def _frames(path: Path) -> Iterator[Any]:
    """Yield the decoded frames of a video. Packets that cannot be decoded are skipped, as the ffmpeg program does.

    Raises UnreadableVideo if there is no frame.
    """
    found, detail = False, "it holds no frame"
    try:
        with open_video(path) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableVideo(f"{path} cannot be read: it has no video stream")
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except av.EOFError:
                    break
                except av.FFmpegError as error:
                    detail = str(error.strerror)
                    continue
                for frame in decoded:
                    found = True
                    yield frame
    except RefusedFormat as error:
        detail = str(error)
    except (OSError, av.FFmpegError) as error:
        detail = str(error.strerror)
    if not found:
        raise UnreadableVideo(f"{path} cannot be read: {detail}")


def _upright(frame: Any, short_side: int, shape: tuple[int, ...] | None) -> np.ndarray:
    """Rotate a frame upright by its display matrix, and resize it to ``short_side``.

    If given, ``shape``, the shape of the first frame, sets the size, because a stream may change its frame size.
    """
    picture: Any = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
    scale = short_side / min(picture.shape[:2])
    height, width = shape[:2] if shape else (max(short_side, int(side * scale)) for side in picture.shape[:2])
    method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method)

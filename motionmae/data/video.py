"""Frames of a video file, for looking at single videos; training reads shards (data_tools/make_shards)."""

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from motionmae.config import ClipConfig


class UnreadableVideo(Exception):  # noqa: N818 - it names a thing found, not a failure of ours
    """A file of which no frame can be decoded; the text says which and why."""


def read_video(path: Path, short_side: int, stride: int = 1, most: int = 0) -> np.ndarray:
    """Every ``stride``-th frame, upright, its short side resized: uint8 (n, H, W, 3).

    Packets that do not decode are left out, as the ffmpeg program does.

    Args:
        path: the file.
        short_side: pixels.
        stride: distance of the frames that are kept.
        most: frames after which reading stops; 0 reads all.

    Raises:
        UnreadableVideo: there is no frame.
    """
    frames: list[np.ndarray] = []
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
                    if number % stride == 0 and (not most or len(frames) < most):
                        frames.append(_upright(frame, short_side, frames[0].shape if frames else None))
                    number += 1
                if most and len(frames) == most:
                    break
    except (OSError, av.FFmpegError) as error:
        detail = str(error.strerror)
    if not frames:
        raise UnreadableVideo(f"{path} cannot be read: {detail}")
    return np.stack(frames)


def read_central_clip(path: Path, clip: ClipConfig) -> torch.Tensor:
    """The clip in the middle of a video, cut to its central square: uint8 (T, size, size, 3).

    A video shorter than a clip repeats its last frame.

    Raises:
        UnreadableVideo: as :func:`read_video`.
    """
    frames = read_video(path, clip.size, clip.stride)
    start = max(0, len(frames) - clip.frames) // 2
    chosen = np.minimum(np.arange(start, start + clip.frames), len(frames) - 1)
    top, left = ((side - clip.size) // 2 for side in frames.shape[1:3])
    return torch.from_numpy(frames[chosen, top : top + clip.size, left : left + clip.size].copy())


def _upright(frame: Any, short_side: int, shape: tuple[int, ...] | None) -> np.ndarray:
    """A frame turned as its display matrix says, in the size of the first (streams may change theirs)."""
    picture: Any = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
    scale = short_side / min(picture.shape[:2])
    height, width = shape[:2] if shape else (max(short_side, int(side * scale)) for side in picture.shape[:2])
    method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method)

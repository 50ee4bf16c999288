"""Decode frames of single video files. Training reads shards instead."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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


class Frame(NamedTuple):
    """Decoded frame of a video file."""

    number: int
    seconds: float | None  # time from the start of the file's clock; None if the file has no times
    picture: np.ndarray  # uint8 (H, W, 3)


def read_video(path: Path, short_side: int, stride: int = 1, most: int = 0) -> np.ndarray:
    """Read every ``stride``-th frame, rotated upright and resized as ffmpeg does: uint8 (n, H, W, 3).

    Return at most ``most`` frames, or all if ``most`` is 0. Raises UnreadableVideo if no frame can be decoded.
    """
    frames: list[np.ndarray] = []
    scaler = _Scaler(short_side)
    for number, frame in enumerate(_frames(path)):
        if number % stride == 0:
            frames.append(_scaled(path, scaler, frame))
        if most and len(frames) == most:
            break
    return np.stack(frames)


def count_frames(path: Path) -> int:
    """Return the number of frames that decode; headers may be wrong. Raises UnreadableVideo if there is none."""
    return sum(1 for _ in _frames(path))


def read_frames(path: Path, numbers: Iterable[int], size: int) -> dict[int, np.ndarray]:
    """Read frames by their numbers, see :func:`iterate_frames`.

    Raises UnreadableVideo if a frame cannot be decoded, or the video ends before it.
    """
    wanted = set(numbers)
    last = max(wanted)
    found = {frame.number: frame.picture for frame in iterate_frames(path, size, wanted.__contains__, last)}
    if missing := sorted(wanted - found.keys()):
        raise UnreadableVideo(f"{path} cannot be read: its frame {missing[0]} does not decode")
    return found


def iterate_frames(path: Path, size: int, wanted: Callable[[int], bool], last: int | None = None) -> Iterator[Frame]:
    """Yield the frames up to ``last`` whose number is ``wanted``.

    Frames are converted to RGB as ffmpeg does, rotated upright, and resized to the short side ``size`` as transformers'
    VideoMAEImageProcessor resizes them (:func:`resize_short_side`).
    """
    scaler = _Scaler(None)
    for number, frame in enumerate(_frames(path)):
        if wanted(number):
            yield Frame(number, frame.time, resize_short_side(_scaled(path, scaler, frame), size))
        if number == last:
            break


def resize_short_side(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) to the short side ``size``: bilinear with antialiasing, the long side rounded down."""
    import torch  # slow to import; data_tools needs only the extensions
    from torchvision.transforms.v2 import functional

    height, width = picture.shape[:2]
    short = min(height, width)
    if short == size:
        return picture
    planes = torch.from_numpy(picture).permute(2, 0, 1)
    resized = functional.resize(planes, [height * size // short, width * size // short], antialias=True)
    return resized.permute(1, 2, 0).contiguous().numpy()


def read_central_clip(path: Path, clip: ClipConfig) -> "torch.Tensor":
    """Read the clip in the middle of a video and crop its central square: uint8 (T, size, size, 3).

    A video shorter than the clip repeats its last frame. The file is decoded twice: the first pass counts the frames.
    At most one clip is held in memory, because the frames of an hour take gigabytes.

    Raises UnreadableVideo if no frame can be decoded or the file changes between the passes.
    """
    import torch

    count = -(-count_frames(path) // clip.stride)
    start = max(0, count - clip.frames) // 2
    chosen = [min(start + number, count - 1) * clip.stride for number in range(clip.frames)]
    found = read_frames(path, chosen, clip.size)
    frames = np.stack([found[number] for number in chosen])
    top, left = ((side - clip.size) // 2 for side in frames.shape[1:3])
    return torch.from_numpy(frames[:, top : top + clip.size, left : left + clip.size].copy())


def _scaled(path: Path, scaler: "_Scaler", frame: VideoFrame) -> np.ndarray:
    try:
        return scaler.scale(frame)
    except UnsupportedFrame as error:
        raise UnreadableVideo(f"{path} cannot be read: {error}") from error


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
    """Scaler of the frames of one video to upright RGB, as the ffmpeg program does. The first frame sets the size.

    Args:
        short_side: in pixels; None keeps the size of the first frame.
    """

    def __init__(self, short_side: int | None):
        self._short_side = short_side
        self._size: tuple[int, int] | None = None
        self._orientation = UPRIGHT
        self._reformatter = VideoReformatter()

    def scale(self, frame: VideoFrame) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises UnsupportedFrame."""
        if self._size is None:
            sides = (frame.width, frame.height)
            short = self._short_side or min(sides)
            width, height = (max(short, side * short // min(sides)) for side in sides)
            if max(width, height) > MAX_SIDE:
                frames = f"its frames are {frame.width} x {frame.height} pixels, and {width} x {height} at this size"
                raise UnsupportedFrame(f"{frames}; a side has at most {MAX_SIDE}")
            self._size, self._orientation = (width, height), find_orientation(frame)
        return np.array(self._orientation.make_upright(rescale_to_rgb(self._reformatter, frame, self._size)))

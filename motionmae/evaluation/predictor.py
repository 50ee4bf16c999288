"""Class scores of video files: of whole videos, as the mean softmax of views, and of windows along a long video.

Frames are decoded as ffmpeg does, resized and cropped as transformers' VideoMAEImageProcessor does, and normalised by
the encoder. With one clip and one crop, the input is the central clip of the video.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.config import Config
from motionmae.data.held_out.views import clip_views, cut_views, read_views_of_file
from motionmae.data.video.read_video import Frame, UnreadableVideo, iterate_frames
from motionmae.errors import UserError
from motionmae.evaluation.inference import FrozenModel

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """Class scores of one video."""

    video: str  # name for messages and tables
    class_names: tuple[str, ...]
    scores: Floats  # (classes,), mean over the views of their softmax
    logits: Floats  # (views, classes)

    @property
    def label(self) -> str:
        """Class with the highest score."""
        return self.class_names[int(self.scores.argmax())]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the ``count`` best classes and their scores, the best first."""
        return top_classes(self.scores, self.class_names, count)


@dataclass(frozen=True)
class Timeline:
    """Class scores of windows along a video. A window is one clip, cropped to the central square."""

    video: str
    class_names: tuple[str, ...]
    frames: NDArray[np.int64]  # (windows, 2), numbers of the first and last frame of each window
    seconds: NDArray[np.float64]  # (windows, 2), their times from the first frame of the video; NaN if it has no times
    scores: Floats  # (windows, classes)

    @property
    def mean(self) -> Prediction:
        """Prediction for the whole video: the mean over the windows."""
        return Prediction(self.video, self.class_names, self.scores.mean(0), np.log(np.maximum(self.scores, 1e-30)))

    def top(self, count: int = 1) -> list[list[tuple[str, float]]]:
        """Return the ``count`` best classes of each window and their scores."""
        return [top_classes(scores, self.class_names, count) for scores in self.scores]

    def save(self, path: str | Path, classes: int = 6) -> None:
        """Draw the scores of the ``classes`` classes with the highest peaks over time as a PNG."""
        from motionmae.evaluation.timeline_picture import draw_timeline

        draw_timeline(
            Path(path), Path(self.video).name, self.class_names, (self.frames, self.seconds), self.scores, classes
        )


def top_classes(scores: Floats, names: Sequence[str], count: int) -> list[tuple[str, float]]:
    best = np.argsort(-scores, kind="stable")[:count]
    return [(names[number], float(scores[number])) for number in best]


def predict_views(model: FrozenModel, views: NDArray[np.uint8], names: tuple[str, ...], video: str) -> Prediction:
    """Classify a video by its views, uint8 (n, T, size, size, 3)."""
    logits = model(views)
    return Prediction(video, names, logits.softmax(1).mean(0).numpy(), logits.numpy())


def read_views(video: Path | NDArray[np.uint8], config: Config) -> NDArray[np.uint8]:
    """Return the views of a video file, or of frames uint8 (n, H, W, 3): uint8 (clips * crops, T, size, size, 3).

    Raises:
        UnreadableVideo: no frame of the file can be decoded.
        UserError: the frames are no such array.
    """
    if isinstance(video, Path):
        return read_views_of_file(video, config)
    from motionmae.data.video.read_video import resize_short_side

    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not len(video):
        raise UserError(
            f"frames are {video.dtype} {video.shape}: give uint8 (frames, height, width, 3), RGB from 0 to 255"
        )
    clips = clip_views(len(video), 1, config)
    needed = sorted({frame for clip in clips for frame in clip})
    pictures = np.stack([resize_short_side(np.ascontiguousarray(video[n]), config.clip.size) for n in needed])
    indices = [[needed.index(frame) for frame in clip] for clip in clips]
    return cut_views(pictures, indices, config.clip, config.test.crops)


def predict_timeline(
    model: FrozenModel, path: Path, config: Config, names: tuple[str, ...], every: float | None = None, batch: int = 8
) -> Iterator[Timeline]:
    """Yield parts of the timeline of a video, at most ``batch`` windows each, in order; :func:`join` joins them.

    The video is decoded once and only the frames of ``batch`` windows are in memory.

    Args:
        every: seconds from one window to the next; by default windows follow each other without a gap. A file without
            times counts as one of 25 frames a second.

    Raises:
        UnreadableVideo: no frame of the file can be decoded.
    """
    waiting: list[_Window] = []
    first: float | None = None
    for window in _windows(path, config, every):
        first = window.frames[0].seconds if first is None else first
        waiting.append(window)
        if len(waiting) == batch:
            yield _classify(model, waiting, path, config, names, first)
            waiting = []
    if waiting:
        yield _classify(model, waiting, path, config, names, first)


def join(parts: Sequence[Timeline]) -> Timeline:
    """Join parts of the timeline of one video."""
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("frames", "seconds", "scores")]
    return Timeline(parts[0].video, parts[0].class_names, *arrays)


@dataclass(frozen=True)
class _Window:
    frames: tuple[Frame, ...]  # clip.frames of them, of which the last ones may repeat


def _windows(path: Path, config: Config, every: float | None) -> Iterator[_Window]:
    """Yield the windows of a video; the last one ends with the video, and a short video repeats its last frame."""
    clip = config.clip
    held: deque[Frame] = deque(maxlen=clip.frames)
    next_start: float | None = None  # frame number, or seconds, from which on the next window may start
    emitted = -1  # number of the last frame of the last window
    for frame in iterate_frames(path, clip.size, lambda number: number % clip.stride == 0):
        held.append(frame)
        start = _clock(held[0]) if every is not None else float(held[0].number)
        next_start = start if next_start is None else next_start
        if len(held) == clip.frames and start >= next_start - 1e-9:
            yield _Window(tuple(held))
            emitted = frame.number
            while next_start <= start + 1e-9:  # a grid of starts, so that rounding to frames does not add up
                next_start += every if every is not None else clip.frames * clip.stride
    if not held:
        raise UnreadableVideo(f"{path} cannot be read: it holds no frame")
    if emitted != held[-1].number:
        yield _Window((*held, *[held[-1]] * (clip.frames - len(held))))


def _clock(frame: Frame) -> float:
    return frame.number / 25 if frame.seconds is None else frame.seconds


def _classify(
    model: FrozenModel, windows: Sequence[_Window], path: Path, config: Config, names: tuple[str, ...],
    first: float | None,
) -> Timeline:  # fmt: skip
    every_frame = list(range(config.clip.frames))
    views = [
        cut_views(np.stack([frame.picture for frame in window.frames]), [every_frame], config.clip, crops=1)
        for window in windows
    ]
    ends = [(window.frames[0], window.frames[-1]) for window in windows]
    return Timeline(
        str(path),
        names,
        np.array([[frame.number for frame in pair] for pair in ends], np.int64),
        np.array([[_since(frame, first) for frame in pair] for pair in ends], np.float64),
        model(np.concatenate(views)).softmax(1).numpy(),
    )


def _since(frame: Frame, first: float | None) -> float:
    return float("nan") if frame.seconds is None or first is None else frame.seconds - first

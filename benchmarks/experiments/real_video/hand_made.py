"""Hand-made features of a video: its appearance in four frames, and its motion by histograms of normal flow.

Normal flow is the part of the optical flow along the gradient of the image, -dI/dt / |grad I|, which two frames give
without a search (Horn and Schunck 1981). Histograms of gradients are those of Dalal and Triggs (CVPR 2005), without
normalised blocks. Both are far simpler than what they are compared with, and learn nothing.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError

HEIGHT, WIDTH = 60, 80
"""Size of all frames, in pixels, whatever the shape of the video."""
CELLS, BINS = 4, 8
"""Cells of a histogram along height and along width, and directions."""

_APPEARANCE_FRAMES, _MOTION_PAIRS = 4, 24
_STILL, _FLAT = 0.02, 0.01  # smallest change, and smallest gradient, of grey levels in [0, 1] that count

Floats = NDArray[np.float32]


def features_of(reader: ShardReader, sample: int, mirrored: bool = False) -> tuple[Floats, Floats]:
    """Return the appearance (176 values) and the motion (265 values) of a stored sample of at least two frames.

    If ``mirrored``, these are the features of its mirror image.
    """
    count = reader.read_meta(sample).frames
    seen = np.linspace(0, count - 1, _APPEARANCE_FRAMES).astype(int)
    pairs = np.linspace(0, count - 2, min(_MOTION_PAIRS, count - 1)).astype(int)
    numbers = sorted({*seen.tolist(), *pairs.tolist(), *(pairs + 1).tolist()})
    frames = dict(zip(numbers, decode(reader.read_frames(sample, numbers)), strict=True))
    if mirrored:
        frames = {number: frame[:, ::-1] for number, frame in frames.items()}
    return (
        appearance(np.stack([frames[int(number)] for number in seen])),
        motion(
            np.stack([frames[int(number)] for number in pairs]),
            np.stack([frames[int(number) + 1] for number in pairs]),
        ),
    )


def decode(jpegs: Sequence[bytes | memoryview]) -> list[Floats]:
    """Decode frames to RGB (HEIGHT, WIDTH, 3) in [0, 1]."""
    found = []
    for jpeg in jpegs:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise UserError("a stored frame is no JPEG: give shards that were made without --raw")
        small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        found.append(np.asarray(small, np.float32) / np.float32(255))
    return found


def appearance(frames: Floats) -> Floats:
    """Return a histogram of gradients over all frames (T, H, W, 3), and the mean colour of each cell."""
    rows, columns = np.gradient(frames.mean(3), axis=(1, 2))
    angles = np.arctan2(rows, columns) % np.pi * 2 - np.pi  # a gradient and its opposite count alike
    shape = (len(frames), CELLS, HEIGHT // CELLS, CELLS, WIDTH // CELLS, 3)
    colours = frames.reshape(shape).mean((0, 2, 4)).ravel()
    return np.concatenate([histogram(angles, np.hypot(columns, rows)), colours])


def motion(before: Floats, after: Floats) -> Floats:
    """Return histograms of the direction of normal flow in both halves of the video, and how much moves when.

    ``before`` and ``after`` are the first and the second frames of pairs of neighbouring frames (T, H, W, 3).
    """
    first, second = before.mean(3), after.mean(3)
    change = second - first
    rows, columns = np.gradient((first + second) / 2, axis=(1, 2))
    counted = (np.abs(change) > _STILL) & (np.hypot(columns, rows) > _FLAT)
    weights = np.abs(change) * counted
    angles = np.arctan2(-change * rows, -change * columns)
    half = len(change) // 2
    amounts = np.log(weights.mean((1, 2)) + 1e-5)[np.linspace(0, len(change) - 1, 8).astype(int)]
    total = np.log(weights.mean(keepdims=True).ravel() + 1e-5)
    halves = [histogram(angles[part], weights[part]) for part in (slice(half), slice(half, None))]
    return np.concatenate([*halves, total, amounts]).astype(np.float32)


def histogram(angles: Floats, weights: Floats) -> Floats:
    """Return the share of the weights (T, H, W) in each of CELLS x CELLS x BINS cells and directions."""
    bins = ((angles + np.pi) / (2 * np.pi) * BINS).astype(int) % BINS
    rows = (np.arange(HEIGHT) * CELLS // HEIGHT)[:, None]
    columns = (np.arange(WIDTH) * CELLS // WIDTH)[None]
    places = (rows * CELLS + columns) * BINS + bins
    sums = np.bincount(places.ravel(), weights.ravel(), CELLS * CELLS * BINS)
    return (sums / (weights.sum() + 1e-6)).astype(np.float32)

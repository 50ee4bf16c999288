"""Render a track as a moving shape over a background, with clutter, camera shake and noise.

Colours, contrast, shape, clutter, shake and noise are random and do not depend on the class.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from data_tools.make_toy_dataset.motions import ANGLE, SIZE, Track, X, Y, make_track, standing_track

Picture = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

_SMALLEST, _LARGEST = 0.16, 0.40  # radius as a fraction of the short side
_SUBPIXEL_BITS = 4
SHAKE = 1.5
"""Default maximum of the standard deviation of the camera's velocity noise, in pixels per frame."""


@dataclass(frozen=True)
class _Shape:
    """Shape with its state in every frame."""

    track: Track
    corners: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    colour: tuple[int, int, int]
    edge: tuple[int, int, int]


def render(
    motion: str, frames: int, height: int, width: int, rng: np.random.Generator, shake: float = SHAKE
) -> Iterator[Picture]:
    """Yield the frames of a video of class ``motion``, uint8 RGB (height, width, 3). ``shake`` limits the shake."""
    background = _background(height, width, rng)
    shapes = [_random_shape(standing_track(frames, rng), rng) for _ in range(rng.integers(0, 3))]
    shapes.append(_random_shape(make_track(motion, frames, rng), rng))  # the moving shape is in front
    wander = _shake(frames, shake, rng)
    noise = [rng.normal(0, rng.uniform(1, 4), (height, width, 3)).astype(np.float32) for _ in range(4)]
    for index in range(frames):
        picture = background.copy()
        for shape in shapes:
            _draw(picture, shape, index)
        shift = np.array([[1, 0, wander[index, 0]], [0, 1, wander[index, 1]]])
        shaken = cv2.warpAffine(picture, shift, (width, height), borderMode=cv2.BORDER_WRAP)
        grain = noise[rng.integers(len(noise))]
        yield np.clip(shaken + grain, 0, 255).astype(np.uint8)


def _background(height: int, width: int, rng: np.random.Generator) -> Picture:
    """Draw a smooth random pattern of random contrast."""
    cells = rng.integers(2, 7, 2)
    coarse = rng.uniform(0, 255, (*cells, 3)).astype(np.float32)
    pattern = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    contrast, level = rng.uniform(0.1, 0.6), rng.uniform(60, 190)
    return np.clip(level + contrast * (pattern - 127), 0, 255).astype(np.uint8)


def _random_shape(track: Track, rng: np.random.Generator) -> _Shape:
    """Draw a star-shaped polygon without rotational symmetry, so that every rotation is visible."""
    count = int(rng.integers(5, 9))
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    radii = rng.uniform(0.4, 1.0, count)
    radii[0], radii[count // 2] = 1.0, 0.35
    corners = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    colour, edge = rng.integers(0, 256, (2, 3)).tolist()
    return _Shape(track, corners, tuple(colour), tuple(edge))


def _draw(picture: Picture, shape: _Shape, index: int) -> None:
    """Draw a shape in a frame. A part that leaves the frame on one side enters on the opposite side."""
    height, width = picture.shape[:2]
    state = shape.track[index]
    radius = min(height, width) * _SMALLEST * (_LARGEST / _SMALLEST) ** state[SIZE]
    turn = 2 * np.pi * state[ANGLE]
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    outline = radius * shape.corners @ rotation
    for right in _copies(state[X] * width, width, radius):
        for down in _copies(state[Y] * height, height, radius):
            points = np.round((outline + np.array([right, down])) * 2**_SUBPIXEL_BITS).astype(np.int32)
            cv2.fillPoly(picture, [points], shape.colour, cv2.LINE_AA, _SUBPIXEL_BITS)
            cv2.polylines(picture, [points], True, shape.edge, 2, cv2.LINE_AA, _SUBPIXEL_BITS)


def _copies(position: float, side: int, radius: float) -> list[float]:
    """Return the positions at which a shape must be drawn on an axis whose ends are joined."""
    return [position + shift for shift in (-side, 0, side) if -radius < position + shift < side + radius]


def _shake(frames: int, limit: float, rng: np.random.Generator) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Draw the random walk of a hand-held camera, (frames, 2) in pixels. ``limit`` is the maximum noise (SHAKE)."""
    strength = rng.uniform(0, limit)
    wander = np.zeros((frames, 2))
    for index in range(1, frames):
        wander[index] = 0.9 * wander[index - 1] + rng.normal(0, strength, 2)
    return wander

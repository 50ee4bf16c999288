"""Classes of the toy data set. A class defines how position, angle and size of an object change between frames.

The state of an object is four periodic numbers: x and y (opposite sides of the frame are joined), the angle, and the
size (the smallest size follows the largest). Every video starts at a uniformly random state, and the class defines how
the state changes. These changes keep the distribution of the state uniform. A single frame therefore has the same
distribution in every class, and only the change between frames distinguishes the classes.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

Track = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""State of an object in each frame, (frames, 4): x, y, angle and size, each modulo 1."""

X, Y, ANGLE, SIZE = range(4)


def _steady(axis: int, direction: int, frames: int, rng: np.random.Generator) -> Track:
    """Change one of the four numbers at a constant rate, by 0.6 to 1.2 periods in 60 frames."""
    track = np.zeros((frames, 4))
    track[:, axis] = direction * rng.uniform(0.010, 0.020) * np.arange(frames)
    return track


def _orbit(direction: int, frames: int, rng: np.random.Generator) -> Track:
    """Move on a circle around a fixed point. An increasing angle is clockwise, because y points down."""
    track = np.zeros((frames, 4))
    turns = rng.uniform() + direction * rng.uniform(0.015, 0.025) * np.arange(frames)
    radius = rng.uniform(0.15, 0.25)
    track[:, X] = radius * np.cos(2 * math.pi * turns)
    track[:, Y] = radius * np.sin(2 * math.pi * turns)
    return track


def _swing(low: float, high: float, frames: int, rng: np.random.Generator) -> Track:
    """Oscillate along a line of random direction, with a period between 1 / high and 1 / low frames."""
    track = np.zeros((frames, 4))
    heading, phase = rng.uniform(0, 2 * math.pi, 2)
    swing = 0.12 * np.sin(phase + 2 * math.pi * rng.uniform(low, high) * np.arange(frames))
    track[:, X], track[:, Y] = math.cos(heading) * swing, math.sin(heading) * swing
    return track


def _then(first: int, second: int, frames: int, rng: np.random.Generator) -> Track:
    """Change the number ``first`` in the first half of the video, and the number ``second`` in the second half."""
    track = np.zeros((frames, 4))
    middle = frames // 2
    steps = rng.uniform(0.012, 0.022, 2) * rng.choice([-1, 1], 2)
    track[:, first] = steps[0] * np.minimum(np.arange(frames), middle)
    track[:, second] = steps[1] * np.maximum(np.arange(frames) - middle, 0)
    return track


MOTIONS: dict[str, Callable[[int, np.random.Generator], Track]] = {
    "move_left": partial(_steady, X, -1),
    "move_right": partial(_steady, X, 1),
    "move_up": partial(_steady, Y, -1),
    "move_down": partial(_steady, Y, 1),
    "turn_clockwise": partial(_steady, ANGLE, 1),
    "turn_counterclockwise": partial(_steady, ANGLE, -1),
    "grow": partial(_steady, SIZE, 1),
    "shrink": partial(_steady, SIZE, -1),
    "orbit_clockwise": partial(_orbit, 1),
    "orbit_counterclockwise": partial(_orbit, -1),
    "swing_slowly": partial(_swing, 1 / 60, 1 / 45),
    "swing_fast": partial(_swing, 1 / 16, 1 / 12),
    "move_then_turn": partial(_then, X, ANGLE),
    "turn_then_move": partial(_then, ANGLE, X),
}
"""Maps a class name to the function that draws its track relative to the start. The label is the index here."""


def make_track(motion: str, frames: int, rng: np.random.Generator) -> Track:
    """Draw the states of a moving object: a uniformly random start, then the motion of the class ``motion``."""
    return (rng.uniform(size=4) + MOTIONS[motion](frames, rng)) % 1.0


def standing_track(frames: int, rng: np.random.Generator) -> Track:
    """Draw the states of a static object (clutter), from the distribution of the start of a moving object."""
    return np.repeat(rng.uniform(size=(1, 4)), frames, axis=0)

import numpy as np
import pytest

from data_tools.make_toy_dataset.motions import ANGLE, MOTIONS, SIZE, X, Y, make_track, standing_track

FRAMES = 64


def moves(motion: str, videos: int = 50) -> np.ndarray:
    """(videos, frames - 1, 4): change of the state per frame, wrapped to the shorter direction."""
    tracks = np.stack([make_track(motion, FRAMES, np.random.default_rng(seed)) for seed in range(videos)])
    return (np.diff(tracks, axis=1) + 0.5) % 1.0 - 0.5


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("frame", [0, 20, FRAMES - 1])
def test_no_frame_tells_the_class(motion, frame):
    rng = np.random.default_rng(0)
    states = np.array([make_track(motion, FRAMES, rng)[frame] for _ in range(4000)])
    for axis in range(4):
        counts = np.bincount((states[:, axis] * 10).astype(int), minlength=10)
        assert ((counts - 400) ** 2 / 400).sum() < 30  # chi-square with 9 degrees: 1 in 2,000 exceeds 30
    pairs = np.histogram2d(states[:, X], states[:, Y], bins=4, range=[[0, 1], [0, 1]])[0]
    assert ((pairs - 250) ** 2 / 250).sum() < 40  # 15 degrees


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [
        ("move_left", X, -1),
        ("move_right", X, 1),
        ("move_up", Y, -1),
        ("move_down", Y, 1),
        ("turn_clockwise", ANGLE, 1),
        ("turn_counterclockwise", ANGLE, -1),
        ("grow", SIZE, 1),
        ("shrink", SIZE, -1),
    ],
)
def test_steady_classes_move_one_thing_one_way(motion, axis, sign):
    steps = moves(motion)
    assert (sign * steps[..., axis] > 0.009).all()
    assert np.abs(np.delete(steps, axis, axis=-1)).max() < 1e-9


@pytest.mark.parametrize(("motion", "sign"), [("orbit_clockwise", 1), ("orbit_counterclockwise", -1)])
def test_orbits_turn_their_heading_one_way(motion, sign):
    steps = moves(motion)
    turned = steps[:, :-1, X] * steps[:, 1:, Y] - steps[:, :-1, Y] * steps[:, 1:, X]
    assert (sign * turned > 0).all()  # y points down: a positive cross product is clockwise


def test_swings_differ_in_how_often_they_turn_back():
    def turns(motion):
        along = moves(motion)[..., X]
        return (np.diff(np.sign(along), axis=1) != 0).sum(axis=1)

    assert turns("swing_slowly").max() <= 3
    assert turns("swing_fast").min() >= 7


def test_the_order_of_two_events_is_a_class_of_its_own():
    for motion, first, second in (("move_then_turn", X, ANGLE), ("turn_then_move", ANGLE, X)):
        steps = np.abs(moves(motion))
        early, late = steps[:, : FRAMES // 2 - 1], steps[:, FRAMES // 2 :]
        assert early[..., first].min() > 0.01
        assert early[..., second].max() < 1e-9
        assert late[..., second].min() > 0.01
        assert late[..., first].max() < 1e-9


def test_clutter_stands():
    track = standing_track(5, np.random.default_rng(0))
    assert track.shape == (5, 4)
    assert (track == track[0]).all()

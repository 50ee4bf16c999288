"""Frames and squares of multi-view tests against the published rules, written down once more with numpy."""

import cv2
import numpy as np
import pytest

from motionmae.config import ClipConfig, Config, MultiviewTestConfig
from motionmae.data.held_out.views import clip_views, crop_starts, cut_views, dense_views, segment_views, shrink

LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 61, 64, *np.random.default_rng(0).integers(1, 3000, 1000).tolist()]


def published_dense(length: int, stride: int, clips: int) -> list[np.ndarray]:
    """VideoMAE's test loader of Kinetics: every stride-th frame, the buffer padded to a clip, evenly spaced starts."""
    buffer = np.arange(length)[::stride]
    while len(buffer) < 16:
        buffer = np.append(buffer, buffer[-1])
    if clips == 1:
        start = max(len(buffer) - 16, 0) // 2
        return [buffer[start : start + 16]]
    step = max(1.0 * (len(buffer) - 16) / (clips - 1), 0)
    starts = [int(np.floor(number * step + 1e-9)) for number in range(clips)]
    return [buffer[start : start + 16] for start in starts]


def published_segments(length: int, clips: int) -> list[np.ndarray]:
    """VideoMAE's test loader of Something-Something: both halves of every sixteenth, sorted, every other frame."""
    tick = length / 16.0
    middles = [int(tick / 2.0 + tick * x) for x in range(16)]
    if clips == 1:
        return [np.array(middles)]
    assert clips == 2
    frames = np.sort(np.array(middles + [int(tick * x) for x in range(16)]))
    return [frames[0::2], frames[1::2]]


@pytest.mark.parametrize("clips", [1, 2, 5, 10])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_dense_clips_follow_the_published_rule(clips: int, stride: int):
    for length in LENGTHS:
        found = dense_views(length, 16, stride, clips)
        assert np.array_equal(found, published_dense(length, stride, clips)), (length, clips, stride)


@pytest.mark.parametrize("clips", [1, 2])
def test_segment_clips_follow_the_published_rule(clips: int):
    for length in LENGTHS:
        found = segment_views(length, 16, clips)
        assert np.array_equal(found, published_segments(length, clips)), (length, clips)


def test_three_clips_of_segments_share_all_frames_out():
    assert sorted(frame for clip in segment_views(48, 16, 3) for frame in clip) == list(range(48))


def test_stored_stride_is_taken_off_the_clips():
    config = Config(clip=ClipConfig(stride=4), test=MultiviewTestConfig(clips=2))
    assert np.array_equal(clip_views(100, 2, config), published_dense(100, 2, 2))
    segments = config.updated({"data.sampling": "segments"})
    assert np.array_equal(clip_views(100, 2, segments), published_segments(100, 2))


@pytest.mark.parametrize(
    ("height", "width", "shape", "method"),
    [
        (128, 256, (32, 64), cv2.INTER_AREA),  # four times larger
        (65, 130, (32, 64), cv2.INTER_AREA),
        (64, 128, (32, 64), cv2.INTER_LINEAR),  # exactly twice
        (77, 48, (51, 32), cv2.INTER_LINEAR),  # 51.3 rows
    ],
)
def test_pictures_of_more_than_twice_the_size_are_averaged(
    height: int, width: int, shape: tuple[int, int], method: int
):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = shrink(noise, 32)
    assert found.shape == (*shape, 3)
    assert np.array_equal(found, cv2.resize(noise, shape[::-1], interpolation=method))
    other = cv2.INTER_LINEAR if method == cv2.INTER_AREA else cv2.INTER_AREA
    assert height == 64 or not np.array_equal(found, cv2.resize(noise, shape[::-1], interpolation=other))


@pytest.mark.parametrize(("long_side", "crops"), [(340, 3), (341, 3), (224, 3), (398, 1), (299, 1), (299, 5)])
def test_squares_span_the_long_side(long_side: int, crops: int):
    found = crop_starts(long_side, 224, crops)
    if crops == 3:
        assert found == [int(s * (long_side - 224) / 2) for s in range(3)]  # the published rule
    assert len(found) == crops
    assert crops == 1 or (found[0], found[-1]) == (0, long_side - 224)
    assert crops > 1 or found == [(long_side - 224) // 2]


@pytest.mark.parametrize("upright", [False, True])
def test_views_are_cut_along_the_long_side_whichever_it_is(upright: bool):
    wide = np.random.default_rng(0).integers(0, 256, (4, 32, 50, 3), np.uint8)
    images = wide.transpose(0, 2, 1, 3) if upright else wide
    views = cut_views(images, [[0, 1], [2, 3]], ClipConfig(frames=2, size=32), 3)
    assert views.shape == (6, 2, 32, 32, 3)
    expected = wide[2:4, :, 9:41]
    assert np.array_equal(views[4], expected.transpose(0, 2, 1, 3) if upright else expected)

import re
from dataclasses import replace

import numpy as np
import pytest

from motionmae.config import ClipConfig
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.manifest import EncoderSettings, Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.temporal_sampling import central_frames, check_windows, random_frames
from motionmae.errors import UserError

META = SampleMeta("a.tar", "0", 0, 25.0, frames=100, stride=1, height=16, width=16, windows=(0,), has_flow=False)


def draws(meta, clip, number=3000):
    return np.array([random_frames(meta, clip, KeyedRandom("clip", sample)) for sample in range(number)])


@pytest.mark.parametrize(("frames", "stride"), [(16, 4), (16, 2), (4, 1), (32, 3)])
def test_every_start_that_fits_is_drawn_evenly(frames, stride):
    found = draws(META, ClipConfig(frames=frames, stride=stride))
    assert (np.diff(found, axis=1) == stride).all()
    starts = 100 - (frames - 1) * stride
    observed = np.bincount(found[:, 0], minlength=starts)
    assert len(observed) == starts
    assert found.max() == 99
    expected = 3000 / starts
    assert ((observed - expected) ** 2 / expected).sum() / (starts - 1) < 1 + 5 * np.sqrt(2 / (starts - 1))


@pytest.mark.parametrize(("stored", "step"), [(1, 4), (2, 2), (4, 1)])
def test_stride_counts_source_frames(stored, step):
    found = draws(replace(META, stride=stored), ClipConfig(stride=4), 20)
    assert (np.diff(found, axis=1) == step).all()


@pytest.mark.parametrize("stored", [3, 8])
def test_a_stride_between_the_stored_frames_is_refused(stored):
    with pytest.raises(UserError, match=f"clip.stride=4 .* every {stored}th frame: choose a multiple of {stored}"):
        random_frames(replace(META, stride=stored), ClipConfig(stride=4), KeyedRandom("clip"))


@pytest.mark.parametrize(
    ("frames", "expected"), [(1, [0] * 8), (5, [0, 4] + [4] * 6), (20, [0, 4, 8, 12, 16, 16, 16, 16])]
)
def test_short_videos_repeat_the_last_frame_the_stride_reaches(frames, expected):
    meta, clip = replace(META, frames=frames), ClipConfig(frames=8, stride=4)
    assert (draws(meta, clip, 20) == expected).all()
    assert central_frames(meta, clip) == expected


def test_a_clip_stays_within_one_window():
    meta = replace(META, windows=(0, 30, 65))
    found = draws(meta, ClipConfig(frames=8, stride=4))  # spans 29 frames: 2 + 7 + 7 starts
    window = np.digitize(found, (30, 65))
    assert (window == window[:, :1]).all()
    shares = np.bincount(window[:, 0]) / len(found)
    assert shares == pytest.approx([2 / 16, 7 / 16, 7 / 16], abs=0.05)


def shards_of(window, stride):
    settings = EncoderSettings(short_side=16, jpeg_quality=90, stride=stride, clips=2, window=window)
    return Manifest("toy", "train", ("none",), settings, ())


@pytest.mark.parametrize(("stored", "stride"), [(1, 1), (1, 4), (2, 4), (4, 4), (3, 6), (5, 5)])
def test_a_window_must_store_every_frame_of_a_clip_and_the_one_advised_does(stored, stride):
    clip = ClipConfig(frames=16, stride=stride)
    with pytest.raises(UserError, match=r"hold windows of 1 frames .* or make shards with --window") as refusal:
        check_windows(shards_of(stored, stored), "toy", clip)
    advised = int(re.search(r"--window (\d+)$", str(refusal.value))[1])
    check_windows(shards_of(advised, stored), "toy", clip)
    with pytest.raises(UserError, match=f"make shards with --window {advised}$"):
        check_windows(shards_of(advised - 1, stored), "toy", clip)
    length = advised // stored  # as data_tools/make_shards cuts them
    meta = replace(META, stride=stored, frames=2 * length, windows=(0, length))
    for frames in (central_frames(meta, clip), random_frames(meta, clip, KeyedRandom("clip"))):
        assert (np.diff(frames) == stride // stored).all()  # none is repeated


def test_where_no_window_is_long_enough_the_longest_serves():
    meta = replace(META, frames=20, windows=(0, 4, 14))
    assert random_frames(meta, ClipConfig(frames=4, stride=4), KeyedRandom("clip")) == [4, 8, 12, 12]


def test_the_central_clip_is_in_the_middle():
    assert central_frames(META, ClipConfig(frames=16, stride=4))[0] == 19  # the starts are 0 to 39
    assert central_frames(replace(META, frames=61), ClipConfig(frames=16, stride=4)) == list(range(0, 61, 4))
    assert central_frames(replace(META, windows=(0, 20, 40, 60, 80)), ClipConfig(frames=4, stride=4))[0] == 43

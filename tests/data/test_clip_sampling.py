import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_sampling import (
    central_crop,
    central_cut,
    central_frames,
    check_windows,
    multi_scale,
    random_crop,
    random_cut,
    random_frames,
    random_resized,
)
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.manifest import EncoderSettings, Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError

META = SampleMeta("a.tar", "0", 0, 25.0, frames=100, stride=1, height=16, width=16, windows=(0,), has_flow=False)
DRAWS = 4000


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
    message = f"clip.stride=4 is not a multiple of the shards' stride, {stored}: set clip.stride to a multiple"
    with pytest.raises(UserError, match=message):
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


def ours(height, width, scale, ratio):
    return np.array(
        [random_resized(height, width, scale, ratio, KeyedRandom("clip", sample)) for sample in range(DRAWS)]
    )


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (256, 340, (0.5, 1.0)),
        (340, 256, (0.08, 1.0)),
        (256, 256, (0.5, 1.0)),
        (60, 400, (0.5, 1.0)),
        (7, 9, (0.5, 1.0)),
    ],
)
def test_random_resized_is_distributed_as_torchvisions(height, width, scale):
    ratio = (3 / 4, 4 / 3)
    found = ours(height, width, scale, ratio)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.empty(3, height, width)
        theirs = np.array([RandomResizedCrop.get_params(picture, list(scale), list(ratio)) for _ in range(DRAWS)])
    assert (found >= 0).all()
    assert (found[:, 0] + found[:, 2] <= height).all()
    assert (found[:, 1] + found[:, 3] <= width).all()
    for column in range(4):  # the two-sample Kolmogorov-Smirnov distance; 1.95 sqrt(2 / n) is exceeded once in 1000
        values = np.unique(np.concatenate((found[:, column], theirs[:, column])))
        first = np.searchsorted(np.sort(found[:, column]), values, side="right")
        second = np.searchsorted(np.sort(theirs[:, column]), values, side="right")
        assert np.abs(first - second).max() / DRAWS < 1.95 * np.sqrt(2 / DRAWS), column


def test_where_no_crop_fits_the_middle_is_taken():
    assert (ours(20, 400, (0.9, 1.0), (3 / 4, 4 / 3)) == (0, 186, 20, 27)).all()
    assert (ours(400, 20, (0.9, 1.0), (3 / 4, 4 / 3)) == (186, 0, 27, 20)).all()


def test_multi_scale_has_the_sizes_and_places_of_videomae():
    found = [multi_scale(256, 340, 224, KeyedRandom("clip", sample)) for sample in range(20_000)]
    sizes = Counter((h, w) for _, _, h, w in found)
    sides = (256, 224, 192, 168)  # 0.875 of 256 is 224; 0.66 is 168.96
    assert set(sizes) == {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert min(sizes.values()) / 20_000 == pytest.approx(0.1, abs=0.02)
    rows, columns = (256 - 168) // 4, (340 - 192) // 4
    places = Counter((top // rows, left // columns) for top, left, h, w in found if (h, w) == (168, 192))
    halves = {(row, column) for row in (0, 2, 4) for column in (0, 2, 4)}
    assert set(places) == halves | {(1, 1), (1, 3), (3, 1), (3, 3)}
    assert all(top + h <= 256 and left + w <= 340 for top, left, h, w in found)


def test_multi_scale_snaps_to_the_clips_size():
    sides = {h for _, _, h, _ in (multi_scale(225, 340, 224, KeyedRandom("clip", sample)) for sample in range(500))}
    assert sides == {224, 196, 168, 148}
    for side in (222, 223):  # snapping up must not leave the frame
        for sample in range(200):
            top, left, h, w = multi_scale(side, side, 224, KeyedRandom("clip", sample))
            assert top + h <= side
            assert left + w <= side


@pytest.mark.parametrize("kind", ["random_resized", "multi_scale"])
def test_half_of_the_clips_are_mirrored_where_wanted(kind):
    def crops(flip):
        data = DataConfig(crop=kind, flip=flip)
        return [random_crop(64, 80, 32, data, KeyedRandom("clip", sample)) for sample in range(2000)]

    mirrored, plain = crops(True), crops(False)
    assert sum(crop.flip for crop in mirrored) == pytest.approx(1000, abs=110)
    assert not any(crop.flip for crop in plain)
    assert [(c.top, c.left, c.height, c.width) for c in mirrored] == [(c.top, c.left, c.height, c.width) for c in plain]


def test_central_crop():
    crop = central_crop(256, 340)
    assert (crop.top, crop.left, crop.height, crop.width, crop.flip) == (0, 42, 256, 256, False)
    assert central_crop(9, 4).top == 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_a_crop_may_be_a_single_row_or_column(height: int, width: int):
    """Of 2 x 2 pixels, half of the area is 1 x 1 or 1 x 2, by the rounding of torchvision."""
    found = {tuple(crop[2:]) for crop in ours(height, width, (0.08, 1.0), (3 / 4, 4 / 3)).tolist()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.empty(3, height, width)
        drawn = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)]
    assert found == {(h, w) for _, _, h, w in drawn}
    assert (1, 1) in found


@pytest.mark.parametrize(("sampling", "first"), [("dense", set(range(0, 29))), ("segments", set(range(0, 12)))])
def test_the_kind_of_sampling_is_that_of_the_config(sampling: str, first: set[int]):
    clip, data = ClipConfig(frames=8, size=16, stride=4), DataConfig(sampling=sampling)
    meta = replace(META, frames=57 if sampling == "dense" else 96)
    found = [random_cut(meta, data, clip, KeyedRandom("clip", sample))[0] for sample in range(1500)]
    assert {frames[0] for frames in found} == first
    crop = central_cut(replace(META, height=9, width=4), ClipConfig(frames=2, stride=1))
    assert crop == ([49, 50], central_crop(9, 4))

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from motionmae.config import DataConfig
from motionmae.data.crops import central_crop, multi_scale, random_crop, random_resized
from motionmae.data.rng import KeyedRandom

DRAWS = 4000


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

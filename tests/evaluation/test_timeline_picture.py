"""Picture of a timeline: its pixels, in the first colours of matplotlib's tab10."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motionmae.evaluation.timeline_picture import draw_timeline

BLUE, ORANGE, GREY = (31, 119, 180), (255, 127, 14), (204, 204, 204)


def band_of(path: Path) -> list[tuple[tuple[int, ...], int]]:
    """Colours of the band and their widths in pixels, from left to right: the row that has most of them."""
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))
    known = np.logical_or.reduce([(pixels == colour).all(2) for colour in (BLUE, ORANGE, GREY)])
    row = known.sum(1).argmax()
    return [(colour, len(list(same))) for colour, same in groupby(map(tuple, pixels[row, known[row]].tolist()))]


def test_the_band_has_the_colours_of_the_classes_with_the_highest_peaks(tmp_path: Path):
    """Two of three classes are drawn. Waving is the least likely but for one window, where its peak is the highest."""
    scores = np.array([[0.56, 0.02, 0.42], [0.05, 0.9, 0.05], [0.56, 0.02, 0.42], [0.44, 0.02, 0.54]], np.float32)
    frames = np.array([[first, first + 9] for first in (0, 10, 20, 30)])
    draw_timeline(tmp_path / "t.png", "v.mp4", ("walk", "wave", "run"), (frames, frames / 25), scores, classes=2)
    colours, widths = zip(*band_of(tmp_path / "t.png"), strict=True)
    assert colours == (ORANGE, BLUE, ORANGE, GREY)
    assert np.array(widths) / sum(widths) == pytest.approx(np.array([10, 10, 10, 9]) / 39, abs=0.01)

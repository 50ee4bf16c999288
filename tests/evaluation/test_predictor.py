"""Times of windows of a long video."""

import numpy as np
import pytest

from motionmae.data.video.read_video import Frame
from motionmae.evaluation.predictor import _clock


@pytest.mark.parametrize(("number", "seconds", "expected"), [(50, None, 2.0), (50, 3.5, 3.5), (50, 0.0, 0.0)])
def test_a_file_without_times_has_25_frames_a_second(number: int, seconds: float | None, expected: float):
    assert _clock(Frame(number, seconds, np.empty((0, 0, 3), np.uint8))) == expected

import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from data_tools.frames import _has_half_chroma, _only_range_changes, _range_tables, stored_size
from motionmae.data.video.video_frames import UnsupportedFrame


@pytest.mark.parametrize(
    ("size", "short_side", "stored"),
    [
        ((340, 256), 256, (340, 256)),
        ((640, 480), 240, (320, 240)),
        ((480, 640), 240, (240, 320)),
        ((1920, 1080), 256, (456, 256)),  # 455.1: the nearest even number
        ((1280, 720), 255, (454, 256)),  # 453.3 and 255 (a half of 127.5 is rounded to the even 128)
        ((100, 50), 256, (100, 50)),  # never enlarged
        ((101, 51), 256, (100, 52)),  # 50.5 and 25.5 pairs: to the even number
        ((16384, 16384), 16384, (16384, 16384)),
        ((1, 1), 256, (2, 2)),
        ((3, 400), 256, (4, 400)),
    ],
)
def test_sides_are_even_and_at_most_the_short_side(size: tuple[int, int], short_side: int, stored: tuple[int, int]):
    assert stored_size(*size, short_side) == stored


@pytest.mark.parametrize("size", [(16388, 16), (16, 16388)])
def test_a_side_has_at_most_16384_pixels(size: tuple[int, int]):
    with pytest.raises(UnsupportedFrame, match="and a shard takes at most 16384 a side"):
        stored_size(*size, 256)


@pytest.mark.parametrize(
    ("layout", "width", "half"),
    [
        ("yuv420p", 64, True),
        ("yuv422p", 64, True),
        ("yuv444p", 64, False),
        ("yuv444p", 126, False),
        ("yuv444p", 127, True),
        ("gray", 64, True),
        ("rgb24", 64, False),
    ],
)
def test_chroma_is_half_if_the_decoder_has_no_more(layout: str, width: int, half: bool):
    assert _has_half_chroma(VideoFrame(64, 48, layout), width) is half


def frame_of(layout: str, colour_range: ColorRange, matrix: int) -> VideoFrame:
    frame = VideoFrame(64, 48, layout)
    frame.color_range, frame.colorspace = colour_range, matrix
    return frame


@pytest.mark.parametrize(
    ("layout", "colour_range", "matrix", "size", "only"),
    [
        *(("yuv420p", ColorRange.MPEG, matrix, (64, 48), True) for matrix in (2, 5, 6)),
        ("yuv420p", ColorRange.UNSPECIFIED, 2, (64, 48), True),
        ("yuv420p", ColorRange.JPEG, 2, (64, 48), False),
        ("yuv420p", ColorRange.MPEG, 1, (64, 48), False),
        ("yuv420p", ColorRange.MPEG, 2, (48, 64), False),
        ("yuv420p", ColorRange.MPEG, 2, (64, 46), False),
        ("yuv444p", ColorRange.MPEG, 2, (64, 48), False),
    ],
)
def test_the_shorter_way_is_for_a_change_of_the_range_alone(
    layout: str, colour_range: ColorRange, matrix: int, size: tuple[int, int], only: bool
):
    assert _only_range_changes(frame_of(layout, colour_range, matrix), size) is only


def test_the_tables_widen_the_range_as_bt_601_says():
    """Luma 16 to 235 becomes 0 to 255, chroma 16 to 240 around 128; swscale rounds within one grey level."""
    luma, blue, red = (table.astype(float) for table in _range_tables())
    grey = np.arange(256)
    assert luma.shape == blue.shape == red.shape == (256,)
    assert np.abs(luma - ((grey - 16) * 255 / 219).clip(0, 255)).max() <= 1
    for chroma in (blue, red):
        assert np.abs(chroma - (128 + (grey - 128) * 255 / 224).clip(0, 255)).max() <= 1.5

"""The clip in the middle of a video file, compared with the whole video. See also tests/evaluation/test_features.py."""

import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from motionmae.config import ClipConfig
from motionmae.data.video.read_video import (
    UnreadableVideo,
    read_central_clip,
    read_frames,
    read_video,
    resize_short_side,
)
from tests.data_tools.videos import draw_frames, write_video

transformers = pytest.importorskip("transformers")

CLIP = ClipConfig(frames=4, size=32, stride=2, cube_size=8)


def ordinary(folder: Path) -> Path:
    return write_video(folder / "v.mp4", draw_frames(41))


def variable_rate(folder: Path) -> Path:
    return write_video(folder / "v.mp4", draw_frames(30), times=[n * n for n in range(30)], rate=10)


def raw_stream(folder: Path) -> Path:
    return write_video(folder / "v.h264", draw_frames(30))


def wrong_header(folder: Path) -> Path:
    path = write_video(folder / "v.avi", draw_frames(30), "mpeg4")
    content = bytearray(path.read_bytes())
    for chunk, place in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames, dwLength
        struct.pack_into("<I", content, content.index(chunk) + place, 500)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 500
    return path


def truncated(folder: Path) -> Path:
    path = write_video(folder / "v.avi", draw_frames(60, 128, 96), "mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def damaged(folder: Path) -> Path:
    path = write_video(folder / "v.mp4", draw_frames(60, 128, 96), options={"g": "10", "bf": "0"})
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    return path


def short(folder: Path) -> Path:
    return write_video(folder / "v.mp4", draw_frames(5))


@pytest.mark.parametrize("make", [ordinary, variable_rate, raw_stream, wrong_header, truncated, damaged, short])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_central_clip_is_the_middle_of_all_frames_that_decode(make, stride, tmp_path):
    path = make(tmp_path)
    clip = ClipConfig(frames=4, size=32, stride=stride, cube_size=8)
    whole = whole_frames(path)[::stride]
    start = max(0, len(whole) - 4) // 2
    chosen = [whole[min(start + number, len(whole) - 1)] for number in range(4)]
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.VideoMAEImageProcessor(**sizes, do_rescale=False, do_normalize=False)
    [expected] = processor(chosen, return_tensors="pt")["pixel_values"]  # (4, 3, 32, 32), still grey levels
    assert torch.equal(read_central_clip(path, clip).permute(0, 3, 1, 2), expected)


def whole_frames(path: Path) -> np.ndarray:
    """All frames of a file at their own size, uint8 (n, H, W, 3)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        short_side = min(stream.width, stream.height)
    return read_video(path, short_side)


def test_frames_are_read_by_their_numbers(tmp_path):
    path = ordinary(tmp_path)
    whole = whole_frames(path)
    found = read_frames(path, [30, 3, 3], 32)
    assert sorted(found) == [3, 30]
    for number, frame in found.items():
        assert np.array_equal(frame, resize_short_side(whole[number], 32))
    with pytest.raises(UnreadableVideo, match=r"v\.mp4 cannot be read: its frame 41 does not decode"):
        read_frames(path, [1, 41], 32)


def test_of_a_long_video_a_clip_is_held(tmp_path):
    path = write_video(tmp_path / "v.mp4", draw_frames(400))
    read_central_clip(path, CLIP)  # what is made once
    tracemalloc.start()
    try:
        clip = read_central_clip(path, CLIP)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10 * clip.numel() < 200 * 32 * 32 * 3  # the 200 frames at its stride

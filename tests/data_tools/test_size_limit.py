"""When a video is refused for its size, by arithmetic on frames of one size."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from data_tools.size_limit import SizeLimit, frames_of_header

GIB = 2**30


def count_of(frames: int, calls: list[int]) -> Any:
    def count() -> int:
        calls.append(frames)
        return frames

    return count


def test_frames_so_far_are_refused_only_above_the_limit():
    limit = SizeLimit(2 * GIB, 0, None)
    assert limit.find_excess(2 * GIB, 5) == ""
    assert limit.find_excess(2 * GIB + 1, 5).startswith("its first 5 stored frames exceed the 2 GiB of a sample: use")


@pytest.mark.parametrize(
    ("is_raw", "expected", "size", "refused"),
    [
        (False, 192, 500, False),  # 64 frames of 500 bytes in all, 128 to come at half: 500 + 500 = 1000
        (False, 193, 500, True),
        (True, 140, 500, False),  # 126 frames of raw pixels in 140 packets: 984 bytes
        (True, 144, 500, True),  # 129.6 frames: 1012 bytes
    ],
)
def test_frames_to_come_have_half_the_size_but_raw_ones_all_of_it(
    is_raw: bool, expected: int, size: int, refused: bool
):
    calls: list[int] = []
    limit = SizeLimit(1000, expected, count_of(expected, calls), is_raw)
    assert bool(limit.find_excess(size, 64)) is refused
    assert calls == ([expected] if refused else [])


def test_a_video_is_looked_at_every_64_frames():
    limit = SizeLimit(1000, 10_000, None)
    assert [stored for stored in range(1, 200) if limit.find_excess(500, stored)] == [64, 128, 192]


def test_a_header_is_not_believed_until_the_packets_are_counted_once():
    calls: list[int] = []
    limit = SizeLimit(GIB, 10**7, count_of(70, calls))
    assert limit.find_excess(GIB // 2, 64) == ""
    assert limit.find_excess(GIB // 2, 128) == ""
    assert calls == [70]
    long = SizeLimit(GIB, 1000, count_of(640, calls))
    assert long.find_excess(GIB // 4, 64).startswith(
        "its 640 frames would take about 2.5 GiB, more than the 1 GiB of a sample: use --segment-seconds"
    )


def test_without_a_length_packets_are_counted_above_a_sixteenth_of_the_limit():
    calls: list[int] = []
    limit = SizeLimit(1600, 0, count_of(10_000, calls))
    assert limit.find_excess(100, 64) == ""
    assert calls == []
    assert "its 10000 frames would take" in limit.find_excess(101, 64)
    assert calls == [10_000]


def container_of(duration: int | None) -> Any:
    return SimpleNamespace(duration=duration)


@pytest.mark.parametrize(
    ("frames", "rate", "stream_duration", "container_duration", "expected"),
    [
        (42, Fraction(25), 1000, 9_000_000, 42),
        (0, None, 1000, 9_000_000, 0),
        (0, Fraction(25), 1000, 9_000_000, 250),  # 1000 / 100 s at 25 a second
        (0, Fraction(25), None, 9_500_000, 237),  # 9.5 s, in millionths
        (0, Fraction(25), None, None, 0),
        (0, Fraction(25), -1000, None, 0),
        (0, Fraction(25), None, -5_000_000, 0),
    ],
)
def test_the_frames_that_a_header_claims(
    frames: int, rate: Fraction | None, stream_duration: int | None, container_duration: int | None, expected: int
):
    stream = SimpleNamespace(frames=frames, average_rate=rate, duration=stream_duration, time_base=Fraction(1, 100))
    assert frames_of_header(container_of(container_duration), stream) == expected

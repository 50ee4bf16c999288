"""Ways to split a line of a list, the most likely first."""

import pytest

from data_tools.annotations import read_split
from data_tools.annotations.list_lines import LineSplit, split_line
from tests.data_tools.annotations.files import touch, write


@pytest.mark.parametrize(
    ("line", "ways"),
    [
        ("a.mp4 copy.mp4 3", [((), "a.mp4 copy.mp4", ("3",)), ((), "a.mp4", ("copy.mp4", "3"))]),
        ("a.mp4.mkv,3", [((), "a.mp4.mkv", ("3",))]),
        ("7 a.avi", [((), "7 a.avi", ()), (("7",), "a.avi", ())]),
    ],
)
def test_the_longest_name_comes_first(line: str, ways: list[tuple]):
    assert split_line(line) == [LineSplit(*way) for way in ways]


def test_of_two_files_a_line_names_the_one_with_the_longer_name(tmp_path):
    videos = touch(tmp_path / "videos", "a.mp4", "a.mp4 copy.mp4")
    file = write(tmp_path / "l.txt", "a.mp4 copy.mp4 3\na.mp4 2\n")
    found = read_split("folder", videos, file, None).videos
    assert [(video.source, video.label) for video in found] == [("a.mp4 copy.mp4", 3), ("a.mp4", 2)]

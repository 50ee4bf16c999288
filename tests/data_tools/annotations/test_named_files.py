"""Files below a folder, by the paths that lists give."""

from data_tools.annotations.named_files import NamedFiles
from tests.data_tools.annotations.files import touch


def test_a_path_of_another_machine_is_the_file_that_shares_most_of_its_end(tmp_path):
    videos = touch(tmp_path / "videos", "v1.mp4", "val/v1.mp4", "x/val/v1.mp4", "v2.mp4")
    for name, found in {
        "/data/x/val/v1.mp4": "x/val/v1.mp4",
        "/data/y/val/v1.mp4": "val/v1.mp4",
        "D:\\y\\val\\v1.mp4": "val/v1.mp4",
        "/data/test/v1.mp4": "v1.mp4",
        "/data/val/v2.mp4": "v2.mp4",
    }.items():
        files = NamedFiles(videos)
        assert files.find(name) == videos / found
        (note,) = files.notes
        assert note.endswith(f" of the list does not exist, and {videos / found} is taken for it")
    files = NamedFiles(videos)
    assert files.find("/val/v1.mp4") == videos / "val/v1.mp4"
    assert files.find("/data/val/v3.mp4") is None
    assert files.find("data/val/v1.mp4") is None  # relative, so it is found only as it is written
    assert files.notes == ()

from data_tools.annotations import VideoRecord
from data_tools.annotations.video_index import VideoIndex, walk_files
from tests.data_tools.annotations.files import touch


def test_walk_follows_links_once_and_leaves_the_excluded_folder_out(tmp_path):
    touch(tmp_path / "disk", "a/1.mp4")
    touch(tmp_path / "videos", "2.mp4", "out/3.mp4")
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "a" / "loop").symlink_to(tmp_path / "videos")
    found = walk_files(tmp_path / "videos", exclude=tmp_path / "videos" / "out")
    assert [path.name for path in found] == ["2.mp4", "1.mp4"]


def test_index_records_of_missing_videos_have_the_expected_name(tmp_path):
    index = VideoIndex(touch(tmp_path, "x/A.MP4", "x/notes.txt"))
    assert index.record(["a"], [], "a.mp4", 1, "c") == VideoRecord("x/A.MP4", tmp_path / "x" / "A.MP4", 1, "c", "a.mp4")
    assert index.record(["notes"], [], "notes.mp4", 1, "c") == VideoRecord("notes.mp4", None, 1, "c", "notes.mp4")

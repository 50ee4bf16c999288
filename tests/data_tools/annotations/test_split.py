import pytest

from data_tools.annotations import VideoRecord
from data_tools.annotations.video_index import VideoIndex, walk_files
from motionmae.data.open_shards import load_manifest
from motionmae.errors import UserError
from tests.data_tools.annotations.files import refusal, touch


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


@pytest.mark.parametrize(("dataset", "split"), [("folder", None), ("k400", "train"), ("ucf101", "train1")])
def test_paths_whose_existence_cannot_be_decided_are_refused(tmp_path, dataset, split):
    videos = touch(tmp_path / "v", "1.mp4")
    for paths in ((videos, videos / ("x" * 300)), (videos / ("x" * 300), None)):
        message = refusal(dataset, *paths, split)
        assert "cannot be read (File name too long): check the name, and the permissions of its folders" in message
    with pytest.raises(UserError, match="File name too long"):
        load_manifest(videos / ("x" * 300))


def test_a_list_in_a_folder_that_may_not_be_entered_is_refused(tmp_path, monkeypatch):
    videos = touch(tmp_path / "v", "1.mp4")
    file = tmp_path / "locked" / "l.csv"

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(file), "stat", refuse)  # root may enter every folder
    assert f"{videos} cannot be read (Permission denied)" in refusal("folder", videos, file, None)

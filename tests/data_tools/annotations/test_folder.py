from data_tools.annotations import read_split
from tests.data_tools.annotations.files import facts, refusal, touch, write
from tests.shared_data import SHARED_DATA, needs_shared_data


def test_folder_lists_take_every_usual_form_of_a_line(tmp_path):
    names = ["a.mp4", "with blank 1.mp4", "comma,inside.avi", "sub/b.webm", "x.mp4", "no_ending", "y.mp4"]
    videos = touch(tmp_path / "videos", *names)
    text = (
        "\ufeff# a comment\na.mp4 3\r\nwith blank 1.mp4 0\ncomma,inside.avi 1\nsub/b.webm\t2\n\n"
        f"{videos / 'x.mp4'},4\nno_ending 1\ngone.mp4 2\ny.mp4\n"
    )
    split = read_split("folder", videos, write(tmp_path / "mine.txt", text), None)
    assert [(video.source, video.label) for video in split.videos] == [
        *zip([*names[:4], str(videos / "x.mp4"), "no_ending"], [3, 0, 1, 2, 4, 1], strict=True),
        ("gone.mp4", 2),
        ("y.mp4", -1),
    ]
    assert [video.source for video in split.videos if video.path is None] == ["gone.mp4"]
    assert split.class_names == ("0", "1", "2", "3", "4")
    assert split.name == "mine"


def test_folder_lists_with_named_classes_are_numbered_alphabetically(tmp_path):
    videos = touch(tmp_path / "videos", "a.mp4", "b.mp4")
    table = write(tmp_path / "t.csv", 'path,label\na.mp4,"running, fast"\nb.mp4,"a walk"\n')
    split = read_split("folder", videos, table, "train")
    assert facts(split) == [("a.mp4", True, 1, "running, fast"), ("b.mp4", True, 0, "a walk")]
    lines = write(tmp_path / "l.txt", "a.mp4,walk 3\nb.mp4,run\n")
    assert [video.label for video in read_split("folder", videos, lines, None).videos] == [1, 0]
    write(tmp_path / "classInd.txt", "1 run\n")
    assert "classInd.txt lacks the class 'walk 3' of a.mp4" in refusal("folder", videos, lines, None)
    assert "has no column 'label'" in refusal(
        "folder", videos, write(tmp_path / "h.csv", "path,score\na.mp4,1\n"), None
    )


def test_folder_finds_the_lists_of_its_splits_and_class_names_by_itself(tmp_path):
    videos = touch(tmp_path, "one/a.mp4", "one/b.mp4")
    write(tmp_path / "train.csv", "one/a.mp4 1\n")
    write(tmp_path / "val.csv", "one/b.mp4 0\n")
    write(tmp_path / "classInd.txt", "0 hug\n1 kick\n")
    split = read_split("folder", videos, None, None)
    assert facts(split) == [("one/a.mp4", True, 1, "kick"), ("one/b.mp4", True, 0, "hug")]
    assert (split.name, split.split_file) == ("all", "train.csv, val.csv")
    assert facts(read_split("folder", videos, None, "val")) == [("one/b.mp4", True, 0, "hug")]
    assert "has no test.csv or .txt, only train.csv and val.csv" in refusal("folder", videos, None, "test")
    touch(videos, "test/c.mp4")
    assert facts(read_split("folder", videos, None, "test")) == [("test/c.mp4", True, -1, "")]


def test_folder_trees_take_the_first_folder_as_class(tmp_path):
    videos = touch(
        tmp_path,
        "b/deep/2.mp4",
        "a/1.avi",
        "a/sound.wav",
        "a/unknown.xyz",
        "top.mp4",
        "README.md",
        "b/list.txt",
        ".x/h.mp4",
    )
    split = read_split("folder", videos, None, None)
    assert facts(split) == [
        ("top.mp4", True, -1, ""),
        ("a/1.avi", True, 0, "a"),
        ("a/sound.wav", True, 0, "a"),
        ("a/unknown.xyz", True, 0, "a"),
        ("b/deep/2.mp4", True, 1, "b"),
    ]
    assert sorted(split.skipped) == ["README.md", "b/list.txt"]


def test_folder_trees_with_splits_and_flat_ones(tmp_path):
    videos = touch(tmp_path / "v", "train/a/1.mp4", "train/b/2.mp4", "val/b/3.mp4")
    assert facts(read_split("folder", videos, None, "val")) == [("val/b/3.mp4", True, 0, "b")]
    for split in (None, "trian"):
        assert "holds the splits train, val: choose one with --split" in refusal("folder", videos, None, split)
    flat = touch(tmp_path / "flat", "1.mp4", "2.mp4")
    assert facts(read_split("folder", flat, None, None)) == [("1.mp4", True, -1, ""), ("2.mp4", True, -1, "")]


def test_folder_wrong_input_is_answered_in_a_sentence(tmp_path):
    videos = touch(tmp_path / "videos", "notes.txt")
    assert "does not exist" in refusal("folder", tmp_path / "gone", None, None)
    assert f"--annotations {tmp_path / 'gone'} does not exist" in refusal("folder", videos, tmp_path / "gone", None)
    assert "is not a folder" in refusal("folder", videos / "notes.txt", None, None)
    assert "is not a class number" in refusal("folder", videos, write(tmp_path / "n.csv", "a.mp4 99999999\n"), None)
    assert "no video is listed in" in refusal("folder", videos, None, None)
    assert "has no train.csv or .txt: give the list" in refusal(
        "folder", videos, touch(tmp_path / "lists", "x.md"), "train"
    )
    assert "(the first is gone.mp4): check --videos" in refusal(
        "folder", videos, write(tmp_path / "l.csv", "gone.mp4 0\n"), None
    )


@needs_shared_data
def test_folder_reads_ut_interaction_whole_and_by_split():
    root = SHARED_DATA / "ut_interaction"
    sizes = {split: len(read_split("folder", root, None, split).videos) for split in (None, "train", "val")}
    assert sizes == {None: 120, "train": 83, "val": 37}
    whole = read_split("folder", root, root, None)
    assert whole.class_names == ("handshake", "hug", "kick", "point", "punch", "push")
    assert all(video.path is not None and whole.class_names[video.label] == video.class_name for video in whole.videos)

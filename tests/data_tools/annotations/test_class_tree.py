import pytest

from data_tools.annotations import read_split
from data_tools.annotations.split_names import is_split_folder, split_of
from tests.data_tools.annotations.files import facts, refusal, touch, write
from tests.shared_data import SHARED_DATA, needs_shared_data

SPLITS = (
    *("train", "val", "valid", "validation", "validate", "test", "testing", "training", "Train", "TEST", "Validation"),
    *("train_256", "val_256", "train-320p", "train1", "test 2", "trainset", "val_set", "k400_train", "videos_val"),
)
NO_CLASSES = (
    *("replacement", "replacement_for_corrupted_k400", "annotations", "Annotation", "splits", "fold1", "Fold_10"),
    *("split2", "compress", "compressed"),
)


@pytest.mark.parametrize("name", [*SPLITS, *NO_CLASSES])
def test_one_split_folder_among_classes_is_refused(tmp_path, name):
    videos = touch(tmp_path / "v", f"{name}/a/1.mp4", "walk/2.mp4")
    message = refusal("folder", videos, None, None)
    assert f"holds the splits {name}: " in message
    assert ("choose one with --split" in message) is (name in SPLITS)
    assert "a class that is called so needs another name, or a list" in message
    assert "a class that is called so" not in refusal("folder", touch(tmp_path / "w", f"{name}/a/1.mp4"), None, None)


def test_the_layout_of_the_cvdf_is_refused(tmp_path):
    videos = touch(tmp_path / "v", "train/a_000000_000010.mp4", "replacement/replacement_for_corrupted_k400/b.mp4")
    touch(videos, "annotations/train.md", "val/c.mp4")
    assert "holds the splits replacement, train, val: choose one with --split" in refusal("folder", videos, None, None)
    assert len(read_split("folder", videos, None, "train").videos) == 1


@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("val", "validation"),
        ("validation", "val"),
        ("train", "Train"),
        ("val", "val_256"),
        ("test", "testing"),
        ("fold1", "fold1"),
    ],
)
def test_a_split_is_found_under_its_other_names(tmp_path, split, folder):
    videos = touch(tmp_path / "v", f"{folder}/walk/1.mp4", "other/run/2.mp4")
    found = read_split("folder", videos, None, split)
    assert (facts(found), found.name) == ([(f"{folder}/walk/1.mp4", True, 0, "walk")], split)
    touch(videos, f"{folder}2/walk/1.mp4")
    assert len(read_split("folder", videos, None, folder).videos) == 1


def test_two_folders_of_a_split_are_refused(tmp_path):
    videos = touch(tmp_path / "v", "val_256/a/1.mp4", "validate/a/2.mp4")
    assert "has 2 folders of the split val (val_256, validate): give one as --split" in refusal(
        "folder", videos, None, "val"
    )


def test_splits_within_classes_are_refused(tmp_path):
    videos = touch(tmp_path / "v", "deadlift/train/1.mp4", "deadlift/val/2.mp4", "squat/3.mp4")
    message = refusal("folder", videos, None, None)
    assert "holds the splits deadlift/train, deadlift/val: move each split to a folder of its own" in message


def test_a_folder_around_the_classes_is_told(tmp_path):
    videos = touch(tmp_path / "v", "UCF-101/Swing/1.avi", "UCF-101/YoYo/2.avi")
    (note,) = read_split("folder", videos, None, None).notes
    assert note.endswith(f"if these are the classes, give {videos / 'UCF-101'} as --videos")


@needs_shared_data
def test_no_class_of_a_data_set_is_called_like_a_split():
    formats = SHARED_DATA / "formats"
    maps = [path for path in formats.glob("*/*.txt") if "label_map" in path.name]
    names = [line.strip() for path in maps for line in path.read_text().splitlines()]
    assert len(names) > 700
    assert not [name for name in names if is_split_folder(name) or is_split_folder(name.replace(" ", "_"))]


def test_names_that_only_look_like_splits():
    for name in (
        "train_dog",
        "training dog",
        "testifying",
        "validating tickets",
        "split leap",
        "folding napkins",
        "test_tube",
    ):
        assert not is_split_folder(name), name
    assert [split_of(name) for name in ("trainval", "dev", "fold1", "walk")] == ["train", "val", None, None]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_files_that_are_no_videos_are_skipped_with_a_count(tmp_path):
    videos = touch(tmp_path / "v", "a/1.mp4", "a/sound.wav", "a/zero.mp4", "a/unknown.xyz")
    texts = {
        "release.nfo": "\xb0\xb1 a text",
        "FILE_ID.diz": "x",
        "x.ans": "\x1b[1m x",
        "README": "read me",
        "LICENSE": "x",
    }
    for name, text in texts.items():
        write(videos / "a" / name, text)
    touch(videos, *(f"a/t.{suffix}" for suffix in ("jfif", "avif", "tga", "jp2", "webp", "JPG", "heic")))
    (videos / "a" / "cover").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    write(videos / "a" / "2.mp4", POINTER)
    write(videos / "a" / "3.mp4", "<!DOCTYPE html><html>404</html>")
    write(videos / "a" / "m.csv", "x")
    (videos / "a" / "4.mp4").write_bytes(b"\0\5\x16\7" + bytes(80))
    touch(videos, "a/5.mp4.part", "a/5.mp4.ytdl", "a/6.crdownload", "a/7.mp4.part-Frag3", "a/Thumbs.db", "a/._1.mp4")
    touch(videos, "@eaDir/a/1.mp4", "a/.ipynb_checkpoints/1.mp4", "__MACOSX/a/1.mp4", "Icon\r")
    split = read_split("folder", videos, None, None)
    assert [name for name, *_ in facts(split)] == ["a/1.mp4", "a/sound.wav", "a/unknown.xyz", "a/zero.mp4"]
    assert split.class_names == ("a",)
    note, only_class = split.notes
    assert "the only class is a" in only_class
    assert note == (
        "skipped 2 AppleDouble files, 1 Git LFS pointer, 1 HTML page, 1 data file, 9 pictures, 2 system folders, "
        "6 texts, 4 unfinished downloads; run git lfs pull; download the video again"
    )
    assert len(split.skipped) == 23


def test_a_folder_of_pointers_alone_names_the_remedy(tmp_path):
    write(tmp_path / "v" / "a" / "1.mp4", POINTER)
    assert "no video is listed in" in refusal("folder", tmp_path / "v", None, None)
    assert "skipped 1 Git LFS pointer; run git lfs pull" in refusal("folder", tmp_path / "v", None, None)


def test_a_folder_around_the_splits_is_named(tmp_path):
    videos = touch(tmp_path / "v", "UCF/train/run/1.mp4", "UCF/test/run/2.mp4")
    for split in (None, "train"):
        message = refusal("folder", videos, None, split)
        assert f"holds the splits UCF/test, UCF/train: give {videos / 'UCF'} as --videos, and choose one" in message


def test_folders_called_by_numbers_are_told(tmp_path):
    videos = touch(tmp_path / "v", *(f"{number}/v{number}.mp4" for number in range(12)))
    split = read_split("folder", videos, None, None)
    assert (split.class_names[2], split.notes[0][:26]) == ("10", "the folder 10 is class 2, ")
    touch(tmp_path / "w", "00/a.mp4", "01/b.mp4")
    assert read_split("folder", tmp_path / "w", None, None).notes == ()


def test_videos_beside_class_folders_are_told(tmp_path):
    split = read_split("folder", touch(tmp_path / "v", "a/1.mp4", "b/2.mp4", "3.mp4"), None, None)
    assert split.notes == ("1 of 3 videos lie in no class folder and have no label, first 3.mp4",)


@pytest.mark.parametrize("name", ["metadata.csv", "labels.tsv", "train_list.txt", "annotations/train.csv"])
def test_lists_that_are_not_read_are_told(tmp_path, name):
    videos = touch(tmp_path / "v", "1.mp4", "2.mp4", name, "README.txt")
    note = f"{name} may be a list of labels and is not read: give it as --annotations if it is one"
    assert note in read_split("folder", videos, None, None).notes


def test_lists_are_found_in_any_case(tmp_path):
    videos = touch(tmp_path / "v", "1.mp4", "2.mp4")
    write(videos / "Train.csv", "1.mp4 3\n")
    write(videos / "VAL.CSV", "2.mp4 4\n")
    assert [label for _, _, label, _ in facts(read_split("folder", videos, None, "train"))] == [3]
    assert [label for _, _, label, _ in facts(read_split("folder", videos, None, None))] == [3, 4]

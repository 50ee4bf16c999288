import os

import pytest

from data_tools.annotations import read_split
from data_tools.annotations.video_index import VideoIndex, canonical, walk_files
from tests.data_tools.annotations.files import facts, refusal, touch, write

HEADER = "label,youtube_id,time_start,time_end,split\n"
ID = "R6llTwEh07w"


def read(videos, rows, split="train", dataset="k400"):
    """The split, and the sources of the files of its first video."""
    file = write(videos.parent / f"{split}.csv", HEADER + rows)
    found = read_split(dataset, videos, file, split)
    return found, [source for source, _ in found.videos[0].files]


def filled(folder, *names):
    """Files that are no links of each other."""
    for name in names:
        write(folder / name, name)
    return folder


def test_replacements_come_before_the_original_and_both_are_named(tmp_path):
    """The CVDF's own arrange_by_classes.py prefers a replacement, by the id alone."""
    names = [
        "train/a/" + ID + "_000005_000015.mp4",
        f"replacement/replacement_for_corrupted_k400/{ID}_000007_000017.mp4",
    ]
    split, files = read(filled(tmp_path / "v", *names), f"a,{ID},5,15,train\n")
    assert files == names[::-1]
    assert (
        f"videos with several files, of which the first that decodes is stored: 1, for example {names[1]} before"
        in split.notes[1]
    )


def test_order_of_files_with_one_name(tmp_path):
    clip = f"{ID}_000005_000015"
    order = [
        f"Replacement_2/{clip}.mp4",
        f"train_256/using_segway/{clip}.mp4",
        f"train_256/{clip}.mp4",
        f"using segway/{clip}.mkv",
        f"val/using segway/{clip}.mp4",
        f"train/{ID}_5_15.mp4",
        f"train/{clip}.gif",
    ]
    _, files = read(filled(tmp_path / "v", *order), f"using segway,{ID},5,15,train\n")
    assert files == order


@pytest.mark.parametrize(
    "name", ["0_10.mp4", "000000_000010.mp4.mkv", "0.0_10.0.webm", "000000_000010.MP4", "0-10.mp4"]
)
def test_names_of_other_downloaders(tmp_path, name):
    source = f"x/{ID}_{name}"
    split, _ = read(
        touch(tmp_path / "v", source, f"x/{ID}_10_20.mp4", f"x/{ID}_0_10.mp4.part"), f"a,{ID},0.0,10.0,train\n"
    )
    assert facts(split) == [(source, True, 0, "a")]


def test_ids_that_differ_in_case_are_two_videos(tmp_path):
    other = ID.swapcase()
    both = touch(tmp_path / "v", f"{ID}_000000_000010.mp4", f"{other}_000000_000010.mp4")
    rows = f"a,{ID},0,10,train\nb,{other},0,10,train\n"
    split, _ = read(both, rows)
    assert [source[:11] for source, *_ in facts(split)] == [ID, other]
    (both / f"{other}_000000_000010.mp4").unlink()
    split, _ = read(both, rows)
    assert [exists for _, exists, *_ in facts(split)] == [True, False]
    split, _ = read(both, f"b,{other},0,10,train\n")  # a disk that has lost the case
    assert facts(split) == [(f"{ID}_000000_000010.mp4", True, 0, "b")]


def test_links_to_one_file_are_no_duplicates(tmp_path):
    """arrange_by_classes.py leaves links to all files."""
    videos = filled(tmp_path / "v", f"train/{ID}_000005_000015.mp4", "replacement/x.mp4")
    link = videos / "videos" / "train" / "a" / f"{ID}_000005_000015.mp4"
    link.parent.mkdir(parents=True)
    link.symlink_to(videos / "train" / link.name)
    (videos / "broken").mkdir()
    (videos / "broken" / link.name).symlink_to(videos / "gone.mp4")
    os.link(videos / "train" / link.name, videos / link.name)
    _, files = read(videos, f"a,{ID},5,15,train\n")
    assert files == [f"videos/train/a/{link.name}", f"broken/{link.name}"]


def test_a_replacement_of_a_class_tree_and_of_a_list(tmp_path):
    videos = filled(tmp_path / "v", f"train/a/{ID}.mp4", "train/a/1.mp4", "train/b/1.mp4", f"replacement/{ID}.mp4")
    filled(videos, "replacement/1.mp4")  # which of the two?
    tree = read_split("folder", videos, None, "train")
    assert [video.source for video in tree.videos] == ["train/a/1.mp4", f"replacement/{ID}.mp4", "train/b/1.mp4"]
    assert tree.videos[1].files[1][0] == tree.videos[1].identity == f"train/a/{ID}.mp4"
    assert tree.class_names == ("a", "b")
    listed = read_split("folder", videos, write(tmp_path / "l.csv", f"train/a/{ID}.mp4 0\n"), None)
    assert listed.videos[0].files == tree.videos[1].files


def test_files_of_a_list_with_another_ending_or_in_a_folder_around_them(tmp_path):
    videos = touch(tmp_path / "v", "UCF-101/Swing/v_1.mp4", "UCF-101/Archery/v_1.mp4", "9.webm", "x/9.webm", "x/8.webm")
    lines = "Swing/v_1.avi 0\n/data/other/UCF-101/Archery/v_1.avi 1\nv_1.avi 2\n9 3\n8 4\nYoYo/v_1.avi 5\n"
    split = read_split("folder", videos, write(tmp_path / "l.txt", lines), None)
    found = {one.label: one.path.relative_to(videos).as_posix() if one.path else "" for one in split.videos}
    assert found == {
        0: "UCF-101/Swing/v_1.mp4",
        1: "UCF-101/Archery/v_1.mp4",
        2: "",  # two files could be meant
        3: "9.webm",
        4: "x/8.webm",
        5: "",
    }
    assert [video.identity for video in split.videos][:2] == ["Swing/v_1.avi", "/data/other/UCF-101/Archery/v_1.avi"]
    assert any(
        "videos that have other paths than in the list: 3, first UCF-101/Swing/v_1.mp4 instead" in n
        for n in split.notes
    )


def test_a_folder_that_cannot_be_listed_stops_only_the_search_for_missing_videos(tmp_path, monkeypatch):
    videos = touch(tmp_path / "v", "1.mp4", "x/2.webm")

    def refuse(*args, **kwargs):
        kwargs["onerror"](PermissionError(13, "Permission denied", str(videos / "lost")))
        return iter(())

    monkeypatch.setattr(os, "walk", refuse)  # root can list every folder
    split = read_split("folder", videos, write(tmp_path / "l.csv", "1.mp4 0\n2.mp4 1\n"), None)
    assert [video.path for video in split.videos] == [videos / "1.mp4", None]
    assert f"missing videos were not searched for, because the folder {videos / 'lost'} cannot be listed" in str(
        split.notes
    )


def test_canonical_names():
    assert canonical("v_a.b.avi.mp4") == "v_a.b"
    assert canonical("cafe\u0301.mp4") == "caf\u00e9"
    assert canonical(f"{ID}_0_10.mp4") == canonical(f"{ID}_000000_000010.mp4.mkv") != canonical(f"{ID}_0_11.mp4")
    assert canonical("-mmq0PT-u8k_00155.mp4") == "-mmq0PT-u8k_00155"  # Diving48


def test_folders_of_systems_and_downloads_hold_no_videos(tmp_path):
    names = ["@eaDir/1.mp4", "__MACOSX/1.mp4", ".ipynb_checkpoints/1.mp4", "._1.mp4", "1.mp4.part", "1.mp4"]
    videos = touch(tmp_path / "v", *names)
    assert [path.name for path in walk_files(videos)] == ["1.mp4", "1.mp4.part"]
    record = VideoIndex(videos).record(["1"], [], "1.mp4", 0, "a")
    assert [source for source, _ in record.files] == ["1.mp4"]


def test_kinetics_600_and_700(tmp_path):
    videos = touch(tmp_path / "v", f"val/abseiling/{ID}_000000_000010.mp4")
    lists = tmp_path / "annotations"
    rows = "".join(f"class {number:03d},{number:011d},0,10,train\n" for number in range(599))
    write(lists / "train.csv", HEADER + rows)
    write(lists / "validate.csv", HEADER + f"abseiling,{ID},0,10,validate\n")
    write(lists / "test.csv", HEADER + f"abseiling,{ID},0,10,test\n")
    write(lists / "kinetics600_holdout_test.csv", HEADER + f"abseiling,{ID},0,10,test\n")
    val = read_split("k600", videos, lists, "val")
    assert (facts(val)[0][1:], val.notes, len(val.class_names)) == ((True, 0, "abseiling"), (), 600)
    assert len(read_split("k600", videos, lists, "test").videos) == 1
    (note,) = read_split("k400", videos, lists, "validate").notes
    assert note.endswith("name 600 classes, as Kinetics-600 has: give the data set k600")
    assert "600 of the" not in note
    assert "is not a split of Kinetics-700" in refusal("k700", videos, lists, "dev")


def test_label_map_with_underscores(tmp_path):
    videos = touch(tmp_path / "v", f"{ID}.mp4")
    write(tmp_path / "label_map_k400.txt", "abseiling\nusing_segway\n")
    write(tmp_path / "label_map_k700.txt", "using_segway\n")
    split, _ = read(videos, f"using segway,{ID},0,10,train\n")
    assert facts(split) == [(f"{ID}.mp4", True, 1, "using segway")]
    assert split.class_names == ("abseiling", "using segway")


def test_files_of_macos_and_of_the_user_beside_the_lists(tmp_path):
    videos = touch(tmp_path / "v", f"{ID}.mp4")
    (tmp_path / "l" / "old.csv").mkdir(parents=True)
    (tmp_path / "l" / "._train.csv").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "l" / "notes.csv").write_bytes("caf\xe9".encode("latin-1"))
    write(tmp_path / "l" / "train.csv", HEADER + f"a,{ID},0,10,train\n")
    assert len(read_split("k400", videos, tmp_path / "l", "train").videos) == 1

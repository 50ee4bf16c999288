import csv
from pathlib import Path

from data_tools.annotations import read_split
from tests.data_tools.annotations.files import facts, refusal, touch, write
from tests.shared_data import SHARED_DATA, needs_shared_data

FORMATS = SHARED_DATA / "formats"
CLIPS = SHARED_DATA / "videos"


def kinetics(folder: Path) -> Path:
    write(
        folder / "kinetics-400_val.csv",
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "using segway,R6llTwEh07w,0,10,val,0\n"
        '"massaging person\'s head",-dash_start,299,309,val,0\n'
        "abseiling,plain_name,7,17,val,0\n"
        "abseiling,gone,1,11,val,0\n",
    )
    write(folder / "train.csv", "label,youtube_id,time_start,time_end,split\nzumba,t,0,10,train\n")
    return write(folder / "test.csv", "youtube_id,time_start,time_end,split\nR6llTwEh07w,0,10,test\n").parent


def test_k400_clips_are_found_under_class_folders_and_flat(tmp_path):
    videos = touch(
        tmp_path / "videos",
        "val/using_segway/R6llTwEh07w_000000_000010.mp4",
        "-dash_start_000299_000309.mkv",
        "plain_name.mp4",
    )
    split = read_split("k400", videos, kinetics(tmp_path / "csv"), "validate")
    assert facts(split) == [
        ("val/using_segway/R6llTwEh07w_000000_000010.mp4", True, 2, "using segway"),
        ("-dash_start_000299_000309.mkv", True, 1, "massaging person's head"),
        ("plain_name.mp4", True, 0, "abseiling"),
        ("abseiling/gone_000001_000011.mp4", False, 0, "abseiling"),
    ]
    assert split.class_names == ("abseiling", "massaging person's head", "using segway", "zumba")
    assert (split.name, split.split_file) == ("val", "kinetics-400_val.csv")
    assert "4 of the 400 classes of Kinetics" in split.notes[0]


def test_k400_test_split_has_no_labels(tmp_path):
    videos = touch(tmp_path / "videos", "R6llTwEh07w_000000_000010.mp4")
    split = read_split("k400", videos, kinetics(tmp_path / "csv"), "test")
    assert facts(split) == [("R6llTwEh07w_000000_000010.mp4", True, -1, "")]


def test_k400_same_clip_in_two_folders_is_taken_from_the_class_folder(tmp_path):
    name = "R6llTwEh07w_000000_000010.mp4"
    videos = touch(tmp_path / "videos", f"a/{name}", f"using segway/{name}", f"z/{name}")
    split = read_split("k400", videos, kinetics(tmp_path / "csv"), "val")
    assert split.videos[0].source == f"using segway/{name}"


def test_k400_wrong_input_is_answered_in_a_sentence(tmp_path):
    videos = touch(tmp_path / "videos", "a.mp4")
    folder = kinetics(tmp_path / "csv")
    assert "--split dev is not a split of Kinetics" in refusal("k400", videos, folder, "dev")
    assert "none of the 4 videos" in refusal("k400", touch(tmp_path / "others", "a.mp4"), folder, "val")
    write(folder / "val.csv", "x\n")
    assert "2 csv files of the split val" in refusal("k400", videos, folder, "val")
    assert "is not an official Kinetics csv: use the data set 'folder'" in refusal(
        "k400", videos, write(tmp_path / "list.csv", "a.mp4 3\n"), "val"
    )
    bad = write(tmp_path / "bad.csv", "label,youtube_id,time_start,time_end,split\na,b,x,1,val\n")
    assert "line 2: time_start" in refusal("k400", videos, bad, "val")
    assert "no csv file of the split train" in refusal("k400", videos, tmp_path / "videos", "train")


@needs_shared_data
def test_k400_official_files():
    val = read_split("k400", CLIPS / "kinetics400", FORMATS / "kinetics400", "val")
    assert (len(val.videos), len(val.class_names), val.notes) == (19_906, 400, ())
    found = {row.source: row.class_name for row in val.videos if row.path}
    assert found == {f"{name}.mp4": "using segway" for name in ("R6llTwEh07w", "SOX5yA1l24A", "WUzgd7C1pWA")}
    with (FORMATS / "kinetics400" / "kinetics-400_val.csv").open() as file:  # the label map is in alphabetical order
        assert tuple(sorted({row["label"] for row in csv.DictReader(file)})) == val.class_names
    assert "none of the 38685 videos" in refusal("k400", CLIPS / "kinetics400", FORMATS / "kinetics400", "test")


HEADER = "label,youtube_id,time_start,time_end,split\n"
BOTH = f"{HEADER}archery,aaaaaaaaaaa,1,11,train\nbowling,bbbbbbbbbbb,2,12,validate\n"


def test_rows_of_other_splits_are_left_out(tmp_path):
    videos = touch(tmp_path / "videos", "aaaaaaaaaaa_000001_000011.mp4", "bbbbbbbbbbb_000002_000012.mp4")
    file = write(tmp_path / "all.csv", BOTH)
    for split, found in (("train", "aaaaaaaaaaa_000001_000011.mp4"), ("val", "bbbbbbbbbbb_000002_000012.mp4")):
        chosen = read_split("k400", videos, file, split)
        assert [video.source for video in chosen.videos] == [found]
        assert chosen.class_names == ("archery", "bowling")
        assert chosen.notes[0] == f"1 of the 2 rows of {file} are of other splits and are left out"
    assert "has no rows of the split test, only train: give the file of test" in refusal("k400", videos, file, "test")


def test_a_replacement_is_not_taken_for_another_listed_clip_of_its_video(tmp_path):
    first, second = "aaaaaaaaaaa_000001_000011.mp4", "aaaaaaaaaaa_000021_000031.mp4"
    videos = touch(tmp_path / "videos", f"train/{first}", f"train/{second}", f"replacement/{first}")
    file = write(tmp_path / "train.csv", f"{HEADER}archery,aaaaaaaaaaa,1,11,train\nbowling,aaaaaaaaaaa,21,31,train\n")
    split = read_split("k400", videos, file, "train")
    assert [video.source for video in split.videos] == [f"replacement/{first}", f"train/{second}"]


def test_all_400_names_without_a_label_map_are_numbered_alphabetically(tmp_path):
    """In any other order, the numbers of the train and the val run would differ."""
    names = [f"class {number:03d}" for number in range(400)]
    rows = [f"{name},id{name[-3:]},0,10,val\n" for name in reversed(names)]
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "csv" / "kinetics-400_val.csv", header + "".join(rows))
    videos = touch(tmp_path / "videos", "id007_000000_000010.mp4")
    split = read_split("k400", videos, tmp_path / "csv", "val")
    assert split.class_names == tuple(names)
    assert not any("classes" in note for note in split.notes)
    write(tmp_path / "csv" / "kinetics-400_train.csv", header + "another,x,0,10,train\n")
    assert "name 401 of the 400 classes" in " ".join(read_split("k400", videos, tmp_path / "csv", "val").notes)

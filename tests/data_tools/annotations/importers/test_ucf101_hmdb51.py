from pathlib import Path

import pytest

from data_tools.annotations import read_split
from tests.data_tools.annotations.files import facts, refusal, touch, write
from tests.shared_data import SHARED_DATA, needs_shared_data

FORMATS = SHARED_DATA / "formats"
CLIPS = SHARED_DATA / "videos"


def ucf(folder: Path) -> Path:
    write(folder / "classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
    write(
        folder / "trainlist02.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g01_c01.avi 2\r\n",
    )
    return write(folder / "testlist01.txt", "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n").parent


@pytest.mark.parametrize(
    "layout", ["UCF-101/HandstandPushups/v_HandstandPushups_g01_c01.avi", "v_HandStandPushups_g01_c01.mp4"]
)
def test_ucf101_lists_are_crlf_one_based_and_their_case_differs(tmp_path, layout):
    videos = touch(tmp_path / "videos", layout)
    folder = ucf(tmp_path / "ucfTrainTestlist")
    split = read_split("ucf101", videos, folder, "train2")
    assert facts(split) == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", False, 0, "ApplyEyeMakeup"),
        (layout, True, 1, "HandstandPushups"),
    ]
    for name in ("test", "test01", "testlist01", "val1"):
        split = read_split("ucf101", videos, tmp_path, name)  # finds ucfTrainTestlist below
        assert (facts(split), split.name) == ([(layout, True, 1, "HandstandPushups")], "test1")


def test_ucf101_wrong_input_is_answered_in_a_sentence(tmp_path):
    videos = touch(tmp_path / "videos", "v.avi")
    folder = ucf(tmp_path / "lists")
    assert "choose train1, test1" in refusal("ucf101", videos, folder, "train4")
    assert "trainlist03.txt does not exist" in refusal("ucf101", videos, folder, "train3")
    write(folder / "trainlist01.txt", "ApplyEyeMakeup/v.avi 2\n")
    assert "contradicts classInd.txt" in refusal("ucf101", videos, folder, "train1")
    write(folder / "classInd.txt", "0 ApplyEyeMakeup\n")
    assert "does not number its classes 1, 2, 3" in refusal("ucf101", videos, folder, "train2")


@needs_shared_data
@pytest.mark.parametrize(("split", "rows", "existing"), [("train1", 9_537, 2), ("train2", 9_586, 2)])
def test_ucf101_official_files(split, rows, existing):
    found = read_split("ucf101", CLIPS / "ucf101", FORMATS / "ucf101", split)
    assert (len(found.videos), len(found.class_names)) == (rows, 101)
    here = [video for video in found.videos if video.path]
    assert len(here) == existing
    assert {(video.label, video.class_name) for video in here} == {(83, "SoccerJuggling")}
    assert tuple((FORMATS / "ucf101" / "label_map.mmaction2.txt").read_text().split()) == found.class_names


def test_hmdb51_marks_name_the_split(tmp_path):
    folder = tmp_path / "testTrainMulti_7030_splits"
    write(folder / "wave_test_split1.txt", "A_wave_f_nm_np1_fr_goo_37.avi 1 \nB_(x)&y_wave.avi 2 \nC_wave.avi 0 \n")
    write(folder / "brush_hair_test_split1.txt", "D_brush_hair.avi 1 \n")
    write(folder / "wave_test_split2.txt", "B_(x)&y_wave.avi 1 \n")
    videos = touch(tmp_path / "videos", "wave/A_wave_f_nm_np1_fr_goo_37.avi", "wave/B_(x)&y_wave.avi", "C_wave.avi")
    train = read_split("hmdb51", videos, tmp_path, "train")
    assert facts(train) == [
        ("brush_hair/D_brush_hair.avi", False, 0, "brush_hair"),
        ("wave/A_wave_f_nm_np1_fr_goo_37.avi", True, 1, "wave"),
    ]
    assert train.class_names == ("brush_hair", "wave")
    assert facts(read_split("hmdb51", videos, folder, "test1")) == [("wave/B_(x)&y_wave.avi", True, 1, "wave")]
    assert "has no CLASS_test_split3.txt" in refusal("hmdb51", videos, folder, "test3")
    write(folder / "wave_test_split1.txt", "A.avi\n")
    assert "is not 'NAME.avi 0|1|2'" in refusal("hmdb51", videos, folder, "train1")

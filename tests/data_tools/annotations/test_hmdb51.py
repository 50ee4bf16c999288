from data_tools.annotations import read_split
from tests.data_tools.annotations.files import facts, refusal, touch, write


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

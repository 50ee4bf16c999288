"""Labels of lists in the forms that programs write them."""

import unicodedata

import pytest

from data_tools.annotations import read_split
from tests.data_tools.annotations.files import facts, refusal, touch, write


@pytest.fixture
def videos(tmp_path):
    return touch(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")


def labels_of(videos, file):
    return [(label, name) for _, _, label, name in facts(read_split("folder", videos, file, None))]


class TestArrays:
    @pytest.mark.parametrize("brackets", ["[{}]", "['{}']", "[ {} ]"])
    def test_one_number_in_an_array_is_the_class_number(self, tmp_path, videos, brackets):
        rows = "".join(f"{name}.mp4;{brackets.format(label)}\n" for name, label in (("a", 2), ("b", 10), ("c", 1)))
        assert labels_of(videos, write(tmp_path / "l.csv", f"path;labels\n{rows}")) == [(2, "2"), (10, "10"), (1, "1")]

    def test_one_name_in_an_array_is_the_class_name(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "path,labels\na.mp4,['run']\nb.mp4,\"['a walk']\"\nc.mp4,[]\n")
        assert labels_of(videos, file) == [(1, "run"), (0, "a walk"), (-1, "")]

    @pytest.mark.parametrize("label", ["[0, 2]", "['run', 'walk']", "[" + "0, " * 400 + "1]", '{"id": 3}'])
    def test_several_values_are_refused(self, tmp_path, videos, label):
        quoted = label.replace('"', '""')
        file = write(tmp_path / "l.csv", f'path,labels\na.mp4,[1]\nb.mp4,"{quoted}"\n')
        assert "line 3 has several labels: give each video one" in refusal("folder", videos, file, None)

    def test_a_long_array_of_json_is_refused(self, tmp_path, videos):
        file = write(tmp_path / "l.json", f'[{{"path": "a.mp4", "label": {[0] * 400}}}]')
        assert "entry 1 has several labels" in refusal("folder", videos, file, None)

    def test_brackets_of_a_name_stay(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "a.mp4,[Something] up\nb.mp4,[something]\n")
        assert [name for _, name in labels_of(videos, file)] == ["[Something] up", "[something]"]


def test_numbers_of_numpy_savetxt(tmp_path, videos):
    file = write(tmp_path / "l.txt", "".join(f"{name}.mp4 {label:.18e}\n" for name, label in (("a", 0), ("b", 12))))
    assert labels_of(videos, file) == [(0, "0"), (12, "12")]
    write(file, "a.mp4 1.500000000000000000e+00\nb.mp4 2.000000000000000000e+00\n")
    assert "label 1.500000000000000000e+00 is not a whole number" in refusal("folder", videos, file, None)


@pytest.mark.parametrize("digits", [19, 40, 900])
def test_a_huge_number_is_no_class(tmp_path, videos, digits):
    file = write(tmp_path / "l.csv", f"a.mp4,{'9' * digits}\nb.mp4,{'8' * digits}\n")
    message = refusal("folder", videos, file, None)
    assert "line 1: label 99999" in message
    assert "is not a class number" in message
    assert len(message) < 300


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path, videos):
    names = [unicodedata.normalize(form, "caf\xe9") for form in ("NFC", "NFD")]
    file = write(tmp_path / "l.csv", f"a.mp4,{names[0]}\nb.mp4,{names[1]}\nc.mp4,bar\n")
    assert labels_of(videos, file) == [(1, names[0]), (1, names[0]), (0, "bar")]


@pytest.mark.parametrize("other", ["Brush hair", "brush_hair", "brush-hair", "brush\xa0hair", "brush  hair"])
def test_classes_with_almost_the_same_name_are_told(tmp_path, videos, other):
    split = read_split("folder", videos, write(tmp_path / "l.csv", f"a.mp4,brush hair\nb.mp4,{other}\n"), None)
    assert len(split.class_names) == 2
    assert any("have almost the same name and two numbers" in note for note in split.notes)


def test_a_list_without_labels_is_told(tmp_path, videos):
    file = write(tmp_path / "l.txt", "a.mp4\nb.mp4\n")
    assert read_split("folder", videos, file, None).notes == (f"no video has a label, as {file}, line 1 shows",)

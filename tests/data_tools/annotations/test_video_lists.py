"""Which lines of a list are videos: headers, titles, comments, joined files, columns and keys of splits."""

import json

import pytest

from data_tools.annotations import read_split
from tests.data_tools.annotations.files import facts, refusal, touch, write


@pytest.fixture
def videos(tmp_path):
    return touch(tmp_path / "videos", "a.mp4", "b.mp4")


def rows_of(videos, file, split=None):
    return [(source, label) for source, _, label, _ in facts(read_split("folder", videos, file, split))]


class TestHeader:
    def test_a_foreign_header_above_names_without_extension(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "fichier;\xe9tiquette\na;marche\nb;course\n")
        split = read_split("folder", videos, file, None)
        assert (facts(split), split.class_names) == (
            [("a", True, 1, "marche"), ("b", True, 0, "course")],
            ("course", "marche"),
        )
        assert "is taken for a header, because it alone names no video" in split.notes[0]

    @pytest.mark.parametrize("first", ["gone;3", "gone.mp4;rire", "12;7"])
    def test_a_first_video_that_is_missing_is_no_header(self, tmp_path, videos, first):
        label = "2" if first[-1].isdigit() else "x"
        file = write(tmp_path / "l.csv", f"{first}\na;{label}\nb;{label}\n")
        assert len(read_split("folder", videos, file, None).videos) == 3

    @pytest.mark.parametrize("title", ["My data,,\n,,\n", "Export of 3 May;\n\n", "one\ntwo\nthree\n"])
    def test_a_header_below_a_title(self, tmp_path, videos, title):
        file = write(tmp_path / "l.csv", f"{title}path,label,\na.mp4,run,\nb.mp4,walk,\n")
        split = read_split("folder", videos, file, None)
        assert (rows_of(videos, file), split.class_names) == ([("a.mp4", 0), ("b.mp4", 1)], ("run", "walk"))
        assert f"its header is line {title.count(chr(10)) + 1}" in split.notes[0]

    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_joined_files_repeat_the_header(self, tmp_path, videos, mark):
        file = write(tmp_path / "l.csv", f"{mark}path,label\na.mp4,run\n{mark}path,label\nb.mp4,walk\n")
        assert rows_of(videos, file) == [("a.mp4", 0), ("b.mp4", 1)]

    def test_rows_of_separators_are_empty(self, tmp_path, videos):
        assert rows_of(videos, write(tmp_path / "l.csv", "a.mp4;3\n;\n; ;\nb.mp4;1\n;\n")) == [
            ("a.mp4", 3),
            ("b.mp4", 1),
        ]


class TestComments:
    def test_a_name_may_begin_with_the_mark_of_a_comment(self, tmp_path, videos):
        touch(videos, "#c.mp4")
        file = write(tmp_path / "l.csv", "path,label\n#c.mp4,run\n#a.mp4,no\nb.mp4,walk\n")
        assert rows_of(videos, file) == [("#c.mp4", 0), ("b.mp4", 1)]
        note = f"lines of {file} that name videos but begin with # are left out: 1, first line 3"
        assert note in read_split("folder", videos, file, None).notes

    def test_a_line_whose_label_begins_so_is_left_out_and_told(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "#run,a.mp4\nwalk,b.mp4\n")
        assert rows_of(videos, file) == [("b.mp4", 0)]
        assert "first line 1" in read_split("folder", videos, file, None).notes[0]


def test_aligned_columns_without_extensions(tmp_path, videos):
    assert rows_of(videos, write(tmp_path / "l.txt", "a     3\nb    11\n")) == [("a", 3), ("b", 11)]


class TestSplits:
    @pytest.mark.parametrize("column", ["is_train", "fold", "train", "kfold", "is_test"])
    def test_a_column_that_may_tell_the_split_is_not_ignored(self, tmp_path, videos, column):
        text = f"path,label,{column}\na.mp4,0,1\nb.mp4,1,0\n"
        message = refusal("folder", videos, write(tmp_path / "l.csv", text), "train")
        assert f"has a column {column}, and it is not clear which rows are train: add a column split" in message
        assert len(rows_of(videos, write(tmp_path / "train.csv", text), "train")) == 2  # folds of the train list

    @pytest.mark.parametrize(
        "document",
        [
            {"train": [{"path": "a.mp4", "label": 3}], "val": [{"path": "b.mp4", "label": 1}]},
            {"training": {"a.mp4": 3}, "validation": {"b.mp4": 1}},
            {"train": {"a.mp4": {"label": 3}}, "test": {"b.mp4": {"label": 1}}},
            {"train": {"a.mp4": 3}, "val": {"b.mp4": 1}, "classes": ["run", "walk"]},
        ],
    )
    def test_keys_of_splits_select_the_entries(self, tmp_path, videos, document):
        file = write(tmp_path / "l.json", json.dumps(document))
        assert rows_of(videos, file, "train") == [("a.mp4", 3)]
        if "test" not in document:
            assert rows_of(videos, file, "val") == [("b.mp4", 1)]

    def test_keys_of_splits_are_no_classes(self, tmp_path, videos):
        file = write(tmp_path / "l.json", json.dumps({"train": ["a.mp4"], "val": ["b.mp4"]}))
        assert rows_of(videos, file, "val") == [("b.mp4", -1)]
        assert rows_of(videos, file) == [("a.mp4", -1), ("b.mp4", -1)]


class TestJson:
    def test_a_list_beside_the_names_of_its_classes(self, tmp_path, videos):
        clips = [{"id": 1, "file_name": "a.mp4", "category_id": 1}, {"id": 2, "file_name": "b.mp4", "category_id": 0}]
        file = write(tmp_path / "l.json", json.dumps({"categories": ["run", "walk"], "videos": clips}))
        assert rows_of(videos, file) == [("a.mp4", 1), ("b.mp4", 0)]

    def test_tables_that_point_to_one_another_are_refused(self, tmp_path, videos):
        document = {"videos": [{"id": 1, "file_name": "a.mp4"}], "annotations": [{"video_id": 1, "category_id": 2}]}
        message = refusal("folder", videos, write(tmp_path / "l.json", json.dumps(document)), None)
        assert "is a JSON object with the keys videos, annotations: give an array" in message

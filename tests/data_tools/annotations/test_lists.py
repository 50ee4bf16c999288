"""Lists in the forms that people own. Python's csv and json modules wrote the texts that are not literal."""

import csv
import io
import json
import unicodedata

import pytest

from data_tools.annotations import read_split
from data_tools.annotations.lists import read_lines, read_table
from motionmae.errors import UserError
from tests.data_tools.annotations.files import refusal, touch, write

ROWS = [("v1.mp4", 2), ("v2.mp4", 10), ("v3.mp4", 1)]
NAMES = ["v1.mp4", "v2.mp4", "v3.mp4"]
LABELS = [2, 10, 1]


@pytest.fixture
def videos(tmp_path):
    return touch(tmp_path / "videos", *NAMES)


def written(rows, **dialect):
    """The text that Python's csv module writes."""
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue()


def labels(videos, file, split=None):
    """The label of each video; all videos of the list must be found."""
    found = read_split("folder", videos, file, split).videos
    assert all(video.path is not None and video.path.is_file() for video in found)
    return [video.label for video in found]


HEADERS = [
    *(
        "path,label",
        "video_path,label",
        "filename,label",
        "file_name,class",
        "video,class_id",
        "Video Path,Class Label",
    ),
    *("clip_path,target", "filepath,category", "video-name,action", "name,y", "file,activity", "PATH,LABEL", "src,gt"),
]


class TestTables:
    @pytest.mark.parametrize("header", HEADERS)
    def test_usual_headers(self, tmp_path, videos, header):
        assert labels(videos, write(tmp_path / "l.csv", written([header.split(","), *ROWS]))) == LABELS

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
    @pytest.mark.parametrize("lineterminator", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    @pytest.mark.parametrize("header", [(), ("path", "label")], ids=["plain", "header"])
    def test_every_dialect_of_the_csv_module(self, tmp_path, delimiter, lineterminator, quoting, header):
        rows = [("a b.mp4", 2), ("c,d;e.mp4", 10), ('f"g.mp4', 1), ("sub/h.mp4", 0)]
        videos = touch(tmp_path / "videos", *(name for name, _ in rows))
        table = [header, *rows] if header else rows
        text = written(table, delimiter=delimiter, lineterminator=lineterminator, quoting=quoting)
        assert labels(videos, write(tmp_path / "l.csv", text)) == [2, 10, 1, 0]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_encodings(self, tmp_path, videos, encoding):
        (tmp_path / "l.csv").write_bytes(written([("path", "label"), *ROWS], delimiter="\t").encode(encoding))
        assert labels(videos, tmp_path / "l.csv") == LABELS

    def test_a_list_in_latin_1_finds_its_files_and_is_told(self, tmp_path):
        name = b"caf\xe9.mp4".decode(errors="surrogateescape")
        videos = touch(tmp_path / "videos", name, "v1.mp4")
        (tmp_path / "l.csv").write_bytes(b"v1.mp4,0\ncaf\xe9.mp4,1\n")
        split = read_split("folder", videos, tmp_path / "l.csv", None)
        assert [(video.source, video.label) for video in split.videos] == [("v1.mp4", 0), (name, 1)]
        assert "is not UTF-8 from line 2 on: save it as UTF-8" in split.notes[0]

    @pytest.mark.parametrize(
        "text",
        [
            ",path,label\n0,v1.mp4,2\n1,v2.mp4,10\n2,v3.mp4,1\n",  # DataFrame.to_csv
            "Unnamed: 0,path,label\n0,v1.mp4,2\n1,v2.mp4,10\n2,v3.mp4,1\n",  # the same, read and written again
            "path,label\n0,v1.mp4,2\n1,v2.mp4,10\n2,v3.mp4,1\n",  # an index without a title
            "0,v1.mp4,2\n1,v2.mp4,10\n2,v3.mp4,1\n",  # to_csv(header=False)
            ",0,1\n0,v1.mp4,2\n1,v2.mp4,10\n2,v3.mp4,1\n",  # columns without names
            '"path" "label"\n"1" "v1.mp4" 2\n"2" "v2.mp4" 10\n"3" "v3.mp4" 1\n',  # write.table of R
            "path,label\nv1.mp4,2.0\nv2.mp4,10.0\nv3.mp4,1.0\n",  # a label was missing
            "path,label,fps\nv1.mp4,2,25\nv2.mp4,10,25\nv3.mp4,1,30\n",
            "path,label,,\nv1.mp4,2,,\nv2.mp4,10,,\nv3.mp4,1,,\n",  # a spreadsheet
            "sep=;\npath;label\nv1.mp4;2\nv2.mp4;10\nv3.mp4;1\n",  # Excel
            "label,path\n2,v1.mp4\n10,v2.mp4\n1,v3.mp4\n",
            "2 v1.mp4\n10 v2.mp4\n1 v3.mp4\n",
        ],
    )
    def test_dumps_of_other_programs(self, tmp_path, videos, text):
        assert labels(videos, write(tmp_path / "l.csv", text)) == LABELS

    def test_the_column_whose_files_exist_is_that_of_the_videos(self, tmp_path):
        videos = touch(tmp_path / "videos", "train/Swing/v_Swing_g05_c02.avi")
        text = "clip_name,clip_path,label\nv_Swing_g05_c03,/train/Swing/v_Swing_g05_c02.avi,Swing\n"  # Kaggle's UCF101
        split = read_split("folder", videos, write(tmp_path / "train.csv", text), "train")
        assert [(video.path, video.class_name) for video in split.videos] == [
            (videos / "train/Swing/v_Swing_g05_c02.avi", "Swing")
        ]

    def test_numbers_and_names_of_classes(self, tmp_path, videos):
        text = "path,class_id,class_name\nv1.mp4,1,walk\nv2.mp4,0,run\nv3.mp4,1,walk\n"
        split = read_split("folder", videos, write(tmp_path / "l.csv", text), None)
        assert [(video.label, video.class_name) for video in split.videos] == [(1, "walk"), (0, "run"), (1, "walk")]
        assert split.class_names == ("run", "walk")

    def test_a_column_of_splits_selects_the_rows(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "path,label,split\nv1.mp4,2,training\nv2.mp4,10,val\nv3.mp4,1,train\n")
        assert labels(videos, file, "train") == [2, 1]
        assert labels(videos, file, "validation") == [10]
        assert labels(videos, file) == LABELS
        assert "choose one of train, val with --split" in read_split("folder", videos, file, None).notes[0]
        assert "has no test, only train, val" in refusal("folder", videos, file, "test")


class TestJson:
    @pytest.mark.parametrize(
        "document",
        [
            [{"path": name, "label": label} for name, label in ROWS],
            [{"video_id": 7, "video_path": name, "class": str(label), "duration": 9.5} for name, label in ROWS],
            [{"video": name, "label": [label]} for name, label in ROWS],
            [list(row) for row in ROWS],
            [[label, name] for name, label in ROWS],
            dict(ROWS),
            {name: {"label": label, "duration": 3.5} for name, label in ROWS},
            {"2": ["v1.mp4"], "10": ["v2.mp4"], "1": ["v3.mp4"]},
            {"annotations": [{"path": name, "label": label} for name, label in ROWS], "version": 1},
            {"path": dict(enumerate(NAMES)), "label": dict(enumerate(LABELS))},  # DataFrame.to_json
            {str(number): {"path": name, "label": label} for number, (name, label) in enumerate(ROWS)},
            {"columns": ["path", "label"], "index": [0, 1, 2], "data": [list(row) for row in ROWS]},
            {"schema": {"fields": []}, "data": [{"index": 0, "path": name, "label": label} for name, label in ROWS]},
        ],
    )
    def test_documents(self, tmp_path, videos, document):
        for name in ("l.json", "l.txt"):
            assert labels(videos, write(tmp_path / name, json.dumps(document, indent=1))) == LABELS

    @pytest.mark.parametrize("count", [1, 3])
    def test_lines(self, tmp_path, videos, count):
        lines = [json.dumps({"video": name, "label": label}) for name, label in ROWS[:count]]
        for name in ("train.jsonl", "l.txt"):
            assert labels(videos, write(tmp_path / name, "\n".join(lines))) == LABELS[:count]

    def test_names_without_labels(self, tmp_path, videos):
        assert labels(videos, write(tmp_path / "l.json", json.dumps(NAMES))) == [-1, -1, -1]

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ("{", "is not JSON"),
            ('{"path": "v1.mp4"}\n{"path": ', r"line 2"),
            ('\n{"path": "v1.mp4"}\n\n{"path": ', r"line 4: "),
            ("5", "is JSON, but no list of videos"),
            ('{"a": 1, "b": [1]}', "is a JSON object with the keys a, b"),
            ('[1, "v1.mp4"]', "mixes entries of several forms"),
            ('[["v1.mp4", 1, 2]]', "holds arrays whose values have no names"),
            ('[{"path": "v1.mp4", "label": [1, 2]}]', "entry 1 has several labels"),
            pytest.param('[{"path": "v1.mp4", "label": ' + "9" * 5000 + "}]", "number out of range", id="digits"),
        ],
    )
    def test_other_documents_are_refused(self, tmp_path, videos, document, message):
        assert message in refusal("folder", videos, write(tmp_path / "l.json", document), None)

    def test_a_name_that_begins_with_a_bracket_is_no_json(self, tmp_path):
        videos = touch(tmp_path / "videos", "[group] a.mp4")
        assert labels(videos, write(tmp_path / "l.txt", "[group] a.mp4 3\n")) == [3]


class TestNames:
    @pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
    def test_unicode_forms_of_list_and_disk(self, tmp_path, forms):
        listed, stored = (unicodedata.normalize(form, "caf\xe9/\xfcber uns.mp4") for form in forms)
        videos = touch(tmp_path / "videos", stored)
        assert labels(videos, write(tmp_path / "l.csv", f"{listed},3\n")) == [3]

    def test_separators_of_unicode_end_no_line(self, tmp_path):
        names = ["a\u2028b.mp4", "c\x85d.mp4", "e\x0cf.mp4", "g\u2029h.mp4", "i\x1cj.mp4"]
        videos = touch(tmp_path / "videos", *names)
        file = write(tmp_path / "l.txt", "".join(f"{name} {label}\n" for label, name in enumerate(names)))
        assert labels(videos, file) == [0, 1, 2, 3, 4]
        assert read_lines(file)[1] == "c\x85d.mp4 1"

    def test_paths_of_another_machine(self, tmp_path):
        videos = touch(tmp_path / "videos", "train/v1.mp4", "val/v1.mp4")
        for listed in ("/data/x/val/v1.mp4", "D:\\x\\val\\v1.mp4", "val\\v1.mp4", "/val/v1.mp4"):
            (video,) = read_split("folder", videos, write(tmp_path / "l.txt", f"{listed} 3\n"), None).videos
            assert (video.path, video.label) == (videos / "val/v1.mp4", 3)

    def test_names_without_extension(self, tmp_path):
        videos = touch(tmp_path / "videos", "train/-3B32lodo2M.mp4", "a/same.mp4", "b/same.mp4")
        file = write(tmp_path / "l.csv", "-3B32lodo2M 0\na/same 1\nsame 2\n")  # TimeSformer#70
        split = read_split("folder", videos, file, None)
        assert [video.path for video in split.videos] == [videos / "train/-3B32lodo2M.mp4", videos / "a/same.mp4", None]
        assert f"same of the list may be {videos / 'a/same.mp4'} or {videos / 'b/same.mp4'}" in split.notes[0]

    def test_frames_are_named(self, tmp_path):
        videos = touch(tmp_path / "videos", "v1/img_00001.jpg")
        assert "names folders, such as v1, and no videos" in refusal(
            "folder", videos, write(tmp_path / "l.txt", "v1 100 3\n"), None
        )

    @pytest.mark.parametrize("line", ['""', "''", '",'])
    def test_a_line_of_quotes_is_a_missing_video(self, tmp_path, videos, line):
        split = read_split("folder", videos, write(tmp_path / "l.txt", f"v1.mp4\n{line}\n"), None)
        assert [video.path is None for video in split.videos] == [False, True]

    def test_comments(self, tmp_path):
        videos = touch(tmp_path / "videos", "#1.mp4", "v1.mp4")
        assert labels(videos, write(tmp_path / "l.txt", "# v9.mp4 4\n#1.mp4 3\nv1.mp4 2\n")) == [3, 2]


class TestNumbersAfterTheName:
    def test_the_pretraining_list_of_videomae_v2(self, tmp_path, videos):
        split = read_split("folder", videos, write(tmp_path / "l.csv", "v1.mp4 0 -1\nv2.mp4 0 -1\n"), None)
        assert [(video.path, video.label) for video in split.videos] == [
            (videos / "v1.mp4", -1),
            (videos / "v2.mp4", -1),
        ]
        assert "(VideoMAE V2): the videos have no label" in split.notes[0]

    def test_frames_and_label(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "v1.mp4 100 2\nv2.mp4 120 10\nv3.mp4 100 1\n")  # VideoMAE#24
        assert labels(videos, file) == LABELS
        assert (
            "'path 100 2': the first number is taken for the number of frames"
            in read_split("folder", videos, file, None).notes[0]
        )

    @pytest.mark.parametrize("pairs", ["0 100|0 120", "1 100|2 120", "1 30|1 30", "3 -1|4 -1", "9 x|8 y"])
    def test_pairs_with_two_readings_are_refused(self, tmp_path, videos, pairs):
        one, two = pairs.split("|")
        file = write(tmp_path / "l.csv", f"v1.mp4 {one}\nv2.mp4 {two}\n")
        assert "line 1 has the form" in refusal("folder", videos, file, None)
        assert "it is not clear which value is the label" in refusal("folder", videos, file, None)

    @pytest.mark.parametrize(
        "text",
        [
            "v1.mp4 0 10 3\n",
            "v1.mp4,0.5,10.0,3\n",
            "path,start,end,label\nv1.mp4,0,10,3\n",
            "video_id,start_frame,stop_frame,verb_class\nv1.mp4,0,10,3\n",
        ],
    )
    def test_parts_of_videos_are_refused(self, tmp_path, videos, text):
        message = refusal("folder", videos, write(tmp_path / "l.csv", text), None)
        assert "parts of videos" in message
        assert "cut the videos first" in message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("v1.mp4 3 4\nv2.mp4 1\n", "have 1 and 2 values beside the video"),
            ("v1.mp4,running, fast\n", "line 1 has the form"),
            ("v1.mp4,a,b,c\n", "line 1 has 3 values beside the video"),
            ("7,v1.mp4,a\n", "line 1 has 2 values beside the video"),
            ("v1.mp4 v2.mp4\n", "line 1 names several videos"),
        ],
    )
    def test_other_values_are_refused(self, tmp_path, videos, text, message):
        assert message in refusal("folder", videos, write(tmp_path / "l.csv", text), None)


class TestFirstLine:
    @pytest.mark.parametrize("first", ["Datei,Klasse", "3", "my list of videos", "nom;classe"])
    def test_a_header_of_unknown_words_is_told(self, tmp_path, videos, first):
        file = write(tmp_path / "l.csv", f"{first}\n{written(ROWS)}")
        assert labels(videos, file) == LABELS
        assert (
            f"the first line of {file}, {first!r}, is taken for a header"
            in read_split("folder", videos, file, None).notes[0]
        )

    def test_a_video_that_is_called_like_a_column_is_told(self, tmp_path):
        videos = touch(tmp_path / "videos", "video", "v1.mp4")
        file = write(tmp_path / "l.csv", "video,label\nv1.mp4,run\n")
        split = read_split("folder", videos, file, None)
        assert [(video.source, video.class_name) for video in split.videos] == [("video", "label"), ("v1.mp4", "run")]
        assert "looks like a header and is taken for a video, because the file exists" in split.notes[0]

    def test_a_missing_first_video_is_no_header(self, tmp_path, videos):
        split = read_split("folder", videos, write(tmp_path / "l.csv", "gone.mp4 3\nv1.mp4 2\n"), None)
        assert [(video.source, video.path is None) for video in split.videos] == [("gone.mp4", True), ("v1.mp4", False)]

    def test_columns_that_are_not_known(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "path,score,rating\nv1.mp4,1,2\n")
        assert "'path,score,rating' has no column 'label'" in refusal("folder", videos, file, None)
        file = write(tmp_path / "l.csv", "path,verb,noun\nv1.mp4,1,2\n")
        assert "several columns of labels, verb and noun" in refusal("folder", videos, file, None)
        file = write(tmp_path / "l.json", '[{"a": "v1.mp4", "label": 2}]')
        assert "has the columns a, label, but none with the videos" in refusal("folder", videos, file, None)


class TestLabels:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("v1.mp4,2.5\nv2.mp4,1.0\n", "line 1: the label 2.5 is not a whole number"),
            ("v1.mp4,3\nv2.mp4,walk\n", "line 2: the label 'walk' is a name, but 3"),
            ("v1.mp4,3\nv2.mp4,-5\n", "line 2: the label -5 is below -1"),
            ("v1.mp4,-2.0\n", "line 1: the label -2 is below -1"),
        ],
    )
    def test_labels_with_two_readings_are_refused(self, tmp_path, videos, text, message):
        assert message in refusal("folder", videos, write(tmp_path / "l.csv", text), None)

    @pytest.mark.parametrize("missing", ["", "nan", "NaN", "<NA>", "None", "null", "-1", "-1.0"])
    def test_a_missing_label_among_numbers(self, tmp_path, videos, missing):
        file = write(tmp_path / "l.csv", f"path,label\nv1.mp4,2.0\nv2.mp4,{missing}\nv3.mp4,1.0\n")
        assert labels(videos, file) == [2, -1, 1]

    def test_a_class_may_be_called_none(self, tmp_path, videos):
        split = read_split("folder", videos, write(tmp_path / "l.csv", "v1.mp4,None\nv2.mp4,wave\nv3.mp4,nan\n"), None)
        assert [video.class_name for video in split.videos] == ["None", "wave", ""]
        assert "1 of 3 videos have no label, the first is v3.mp4" in split.notes[0]

    def test_numbers_from_one_are_told(self, tmp_path, videos):
        file = write(tmp_path / "l.csv", "v1.mp4 1\nv2.mp4 2\nv3.mp4 3\n")
        assert (
            "the labels are 1 to 3, so that class 0 has no video" in read_split("folder", videos, file, None).notes[0]
        )
        write(tmp_path / "classInd.txt", "0 a\n1 b\n2 c\n")
        assert "line 3: classInd.txt has no class 3, only 0 to 2" in refusal("folder", videos, file, None)


class TestOtherFiles:
    def test_of_two_lists_of_one_name_the_csv_is_read(self, tmp_path, videos):
        write(tmp_path / "train.csv", "v1.mp4 3\n")
        write(tmp_path / "train.txt", "v2.mp4 4\n")
        split = read_split("folder", videos, tmp_path, "train")
        assert [video.source for video in split.videos] == ["v1.mp4"]
        assert f"train.txt is not read, because {tmp_path} has a list of this name" in split.notes

    def test_numbers_of_classes_are_limited(self, tmp_path, videos):
        write(tmp_path / "classInd.txt", "99999999999 walk\n")
        file = write(tmp_path / "l.csv", "v1.mp4 3\n")
        assert "'99999999999 walk' is not 'NUMBER NAME'" in refusal("folder", videos, file, None)

    @pytest.mark.parametrize(
        ("text", "dataset"),
        [
            ("label,youtube_id,time_start,time_end,split\nx,v1,0,10,train\n", "'k400'"),
            (json.dumps({"v1": {"annotations": {"label": "x"}, "duration": 10.0, "subset": "train"}}), "'k400'"),
            (json.dumps([{"id": "1", "label": "a box", "template": "b", "placeholders": ["x"]}]), "'ssv2'"),
        ],
    )
    def test_official_lists_name_their_data_set(self, tmp_path, videos, text, dataset):
        assert f"use the data set {dataset}" in refusal("folder", videos, write(tmp_path / "train.csv", text), "train")

    def test_a_list_of_hmdb51_has_no_labels(self, tmp_path, videos):
        file = write(tmp_path / "wave_test_split1.txt", "v1.mp4 1\nv2.mp4 2\n")
        assert "use the data set hmdb51" in refusal("folder", videos, file, None)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"\n<!DOCTYPE html>\n<html></html>", "a web page"),
            (b"PK\3\4", "an Excel workbook or a zip archive: save it as csv"),
            (b"\x1f\x8b\x08", "gunzip"),
            (b"PAR1", "Parquet"),
            (b"\x80\x04\x95", "a Python pickle"),
            (b"a\0b", "perhaps UTF-16: save it as UTF-8"),
            (b"\xff\xfea", "is damaged (truncated data)"),
        ],
    )
    @pytest.mark.parametrize("dataset", ["folder", "k400"])
    def test_what_is_no_text_is_named(self, tmp_path, videos, content, message, dataset):
        (tmp_path / "train.csv").write_bytes(content)
        assert message in refusal(dataset, videos, tmp_path / "train.csv", "train")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('path,label\n"v1.mp4,3\nv2.mp4,1\n', "correct the quotes of line"),
            ('path,label\n"v1".mp4,3\n', "correct the quotes of line 2"),
            ("path,label\nv,1.mp4,3\nv2.mp4,1\n", "line 2 has 3 values, but the header has 2"),
            pytest.param("path,label\n" + "x" * 200_000 + ",3\n", "field larger than field limit", id="long"),
        ],
    )
    def test_broken_tables(self, tmp_path, text, message):
        with pytest.raises(UserError) as caught:
            read_table(write(tmp_path / "l.csv", text))
        assert message in str(caught.value)

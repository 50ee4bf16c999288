import json
from pathlib import Path

import pytest

from data_tools.annotations import read_split
from tests.data_tools.annotations.files import facts, refusal, touch, write
from tests.shared_data import SHARED_DATA, needs_shared_data

FORMATS = SHARED_DATA / "formats"


def something(folder: Path) -> Path:
    labels = {"Closing something": "1", "Bending something so that it deforms": "0"}
    write(folder / "something-something-v2-labels.json", json.dumps(labels))
    rows = [
        {"id": "74225", "label": "closing a box", "template": "Closing [something]", "placeholders": ["a box"]},
        {"id": "3", "label": "x", "template": "Bending [something] so that it deforms", "placeholders": ["x"]},
    ]
    write(folder / "something-something-v2-validation.json", json.dumps(rows))
    return write(folder / "something-something-v2-test.json", json.dumps([{"id": "9"}])).parent


def test_ssv2_templates_lose_their_brackets(tmp_path):
    videos = touch(tmp_path / "videos", "74225.webm", "9.webm")
    folder = something(tmp_path / "labels")
    split = read_split("ssv2", videos, folder, "val")
    assert facts(split) == [
        ("74225.webm", True, 1, "Closing something"),
        ("3.webm", False, 0, "Bending something so that it deforms"),
    ]
    assert split.class_names == ("Bending something so that it deforms", "Closing something")
    assert facts(read_split("ssv2", videos, tmp_path, "test")) == [("9.webm", True, -1, "")]
    write(folder / "test-answers.csv", "9;Closing something\n")
    assert facts(read_split("ssv2", videos, folder, "test")) == [("9.webm", True, 1, "Closing something")]


def test_ssv2_wrong_input_is_answered_in_a_sentence(tmp_path):
    videos = touch(tmp_path / "videos", "1.webm")
    folder = something(tmp_path / "labels")
    assert "has no something-something-v2-train.json" in refusal("ssv2", videos, folder, "train")
    write(folder / "something-something-v2-train.json", '[{"label": "x"}]')
    assert "has no id" in refusal("ssv2", videos, folder, "train")
    assert "choose train, validation or test" in refusal("ssv2", videos, folder, None)
    write(folder / "something-something-v2-train.json", json.dumps([{"id": "1", "template": "Opening [something]"}]))
    assert "has no class 'Opening something'" in refusal("ssv2", videos, folder, "train")
    write(folder / "something-something-v2-train.json", "[{")
    assert "is not a JSON file" in refusal("ssv2", videos, folder, "train")


@needs_shared_data
@pytest.mark.parametrize(("split", "rows"), [("validation", 24_777), ("test", 27_157)])
def test_ssv2_official_files_label_every_video(tmp_path, split, rows):
    first = json.loads((FORMATS / "ssv2" / f"something-something-v2-{split}.json").read_bytes())[0]["id"]
    found = read_split("ssv2", touch(tmp_path, f"{first}.webm"), FORMATS / "ssv2", split)
    assert (len(found.videos), len(found.class_names)) == (rows, 174)
    assert {video.label for video in found.videos} == set(range(174))
    assert all(found.class_names[video.label] == video.class_name for video in found.videos)
    assert found.class_names[5] == "Closing something"

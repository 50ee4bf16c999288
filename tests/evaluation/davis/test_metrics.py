"""J and F against scores of the official evaluator, and its rules for special cases."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motionmae.__main__ import main
from motionmae.errors import UserError
from motionmae.evaluation.davis.dataset import palette, read_mask, read_sequences, score_folder, write_mask
from motionmae.evaluation.davis.metrics import (
    Score,
    boundary_accuracy,
    global_means,
    region_similarity,
    score_sequence,
    summarise,
)
from tests.shared_data import SHARED_DATA, needs_shared_data

DAVIS = SHARED_DATA / "davis"


def expected(which: str) -> dict[str, dict[str, float]]:
    return json.loads((DAVIS / "expected_scores.json").read_text())["scores"][which]


def assert_equal(found: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> None:
    assert found.keys() == theirs.keys()
    for name, scores in theirs.items():
        assert found[name] == {key: pytest.approx(value, abs=1e-6) for key, value in scores.items()}, name


@needs_shared_data
def test_osvos_scores_as_with_the_official_evaluator(tmp_path: Path):
    out = tmp_path / "scores.json"
    argv = ["davis", "--davis", str(DAVIS), "--evaluate-only", str(DAVIS / "osvos"), "--json", str(out)]
    assert main(argv) == 0
    figures = json.loads(out.read_text())
    assert_equal(figures["per_object"], expected("osvos"))
    assert figures["J-Mean"] == pytest.approx(np.mean([s["J"] for s in expected("osvos").values()]), abs=1e-6)
    assert len([key for key in figures if key.startswith(("J", "F"))]) == 7


@pytest.mark.slow
@needs_shared_data
def test_the_repeated_first_mask_scores_as_with_the_official_evaluator(tmp_path: Path):
    out = tmp_path / "scores.json"
    argv = [
        "davis",
        "--davis",
        str(DAVIS),
        "--features",
        "repeat",
        "--out",
        str(tmp_path / "masks"),
        "--json",
        str(out),
    ]
    assert main(argv) == 0
    assert_equal(json.loads(out.read_text())["per_object"], expected("copyfirst"))


@needs_shared_data
def test_palette_masks_are_written_as_davis_has_them(tmp_path: Path):
    source = DAVIS / "pieces_2017" / "Annotations" / "480p" / "tennis" / "00000.png"
    mask = read_mask(source)
    assert sorted(np.unique(mask).tolist()) == [0, 1, 2, 255]
    write_mask(tmp_path / "mask.png", mask)
    with Image.open(source) as theirs, Image.open(tmp_path / "mask.png") as ours:
        assert ours.mode == "P"
        colours = [np.array(image.convert("RGB"))[mask < 255] for image in (theirs, ours)]
    assert np.array_equal(*colours)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)


@needs_shared_data
def test_several_objects_and_void_of_real_masks():
    """Tennis, frame 0 as the prediction of frame 1: two objects; void pixels of the truth count for neither mask."""
    folder = DAVIS / "pieces_2017" / "Annotations" / "480p" / "tennis"
    first, second = (read_mask(folder / f"0000{number}.png") for number in range(2))
    truth = np.stack([first, second, second])  # the last frame does not count
    scores = score_sequence(truth, np.stack([first, first, first]))
    assert set(scores) == {1, 2}
    for number, score in scores.items():
        counted = second != 255
        inter = ((first == number) & (second == number) & counted).sum()
        union = (((first == number) | (second == number)) & counted).sum()
        assert score["J"].mean == pytest.approx(inter / union)
        assert 0 < score["F"].mean < 1
    perfect = score_sequence(truth, np.where(truth == 255, 1, truth))  # predictions in void pixels do not count
    assert all(score["J"].mean == score["F"].mean == 1 for score in perfect.values())


def test_empty_masks():
    empty, full = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    full[:5] = False
    assert region_similarity(empty, empty) == boundary_accuracy(empty, empty) == 1
    assert region_similarity(empty, full) == boundary_accuracy(empty, full) == boundary_accuracy(full, empty) == 0


@pytest.mark.parametrize(
    ("values", "mean", "recall", "decay"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 0.55, 4 / 8, 0.8 - 0.3),  # quarters: frames 1 to 3, and 6 to 8
        ([0.9, 0.7, 0.6, 0.4, 0.0], 0.52, 3 / 5, 0.8 - 0.2),  # 1 to 2, and 4 to 5
        ([0.5, 0.6], 0.55, 1 / 2, 0.5 - 0.6),  # 1, and 2
        ([0.51], 0.51, 1, 0),
    ],
)
def test_mean_recall_and_decay_are_those_of_the_official_evaluator(
    values: list[float], mean: float, recall: float, decay: float
):
    """db_statistics of davis2017-evaluation, worked by hand: the borders of the quarters are
    round(linspace(1, N, 5) + 1e-10), both ends included, and recall counts the values above 0.5.
    """
    score = summarise(values)
    assert (score.mean, score.recall, score.decay) == pytest.approx((mean, recall, decay))


def test_the_seven_figures_are_means_over_objects():
    objects = {
        "a_1": {"J": Score(0.2, 0.4, 0.1), "F": Score(0.6, 0.8, 0.3)},
        "b_1": {"J": Score(0.4, 0.8, 0.3), "F": Score(1.0, 1.0, -0.5)},
    }
    figures = {"J-Mean": 0.3, "J-Recall": 0.6, "J-Decay": 0.2, "F-Mean": 0.8, "F-Recall": 0.9, "F-Decay": -0.1}
    assert global_means(objects) == pytest.approx({"J&F-Mean": 0.55, **figures})


@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1), (8, 1), (9, 0)])
def test_boundaries_match_up_to_eight_pixels_of_480p(shift: int, accuracy: float):
    """0.008 of the diagonal of 480 x 854 is 7.84, rounded up."""
    truth, found = np.zeros((2, 480, 854), bool)
    truth[:, 400:] = found[:, 400 + shift :] = True
    assert boundary_accuracy(truth, found) == boundary_accuracy(found, truth) == accuracy


def test_boundary_accuracy_is_the_harmonic_mean_of_precision_and_recall():
    """One of two edges is found: all that is found is right, half of what is true is found. 2 * 1 * 1/2 / (3/2)."""
    truth, found = np.zeros((2, 480, 854), bool)
    truth[:, 200:600] = found[:, 200:] = True
    assert boundary_accuracy(truth, found) == pytest.approx(2 / 3)
    assert region_similarity(truth, found) == pytest.approx(400 / 654)


def test_only_objects_of_the_first_frame_and_inner_frames_count():
    truth = np.zeros((4, 16, 16), np.uint8)
    truth[:, 4:8, 4:8] = 1
    truth[2, 10:12, 10:12] = 2  # appears later and is not an object of the task
    found = truth.copy()
    found[0] = found[3] = 0
    scores = score_sequence(truth, found)
    assert set(scores) == {1}
    assert scores[1]["J"].mean == 1
    assert global_means({"s_1": scores[1]})["J&F-Mean"] == 1


def test_palette_begins_as_published():
    assert palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]


@needs_shared_data
def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["davis", "--davis", str(tmp_path), "--features", "repeat"]) == 2
    assert "2017/val.txt" in capsys.readouterr().err
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("dog\n")
    frames = tmp_path / "JPEGImages" / "480p" / "dog"
    shutil.copytree(DAVIS / "JPEGImages" / "480p" / "dog", frames)
    assert main(["davis", "--davis", str(tmp_path), "--features", "repeat"]) == 2
    assert "dog contains no masks" in capsys.readouterr().err
    (tmp_path / "ImageSets" / "2017" / "none.txt").write_text("\n")
    assert main(["davis", "--davis", str(tmp_path), "--features", "repeat", "--image-set", "2017/none"]) == 2
    assert "none.txt is empty" in capsys.readouterr().err
    sequences = [sequence for sequence in read_sequences(DAVIS) if sequence.name == "dog"]
    with pytest.raises(UserError, match=r"dog/00000\.png is missing"):
        score_folder(sequences, tmp_path)


@needs_shared_data
def test_where_only_first_masks_are_annotated_masks_are_written_and_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    davis = tmp_path / "davis"
    for kind, ending, count in (("JPEGImages", "jpg", 3), ("Annotations", "png", 1)):
        folder = davis / kind / "480p" / "dog"
        folder.mkdir(parents=True)
        for number in range(count):
            name = f"{number:05d}.{ending}"
            shutil.copy(DAVIS / kind / "480p" / "dog" / name, folder / name)
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / "val.txt").write_text("dog\n")
    argv = ["davis", "--davis", str(davis), "--features", "pixels", "--out", str(tmp_path / "out")]
    assert main([*argv, "--overlay", "png"]) == 0
    assert "not scored: 1 of 1 sequences" in capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / "out" / "dog").iterdir())
    assert written == ["00000.png", "00001.png", "00002.png"]
    assert (tmp_path / "out" / "dog.png").is_file()
    assert main([*argv, "--json", str(tmp_path / "scores.json")]) == 2
    assert "leave out --json" in capsys.readouterr().err
    assert main([*argv, "--protocol", "dino"]) == 2
    assert "protocol: videowalk there, dino here" in capsys.readouterr().err

    for number in (1, 2):
        name = f"{number:05d}.png"
        shutil.copy(DAVIS / "Annotations" / "480p" / "dog" / name, davis / "Annotations" / "480p" / "dog" / name)
    (tmp_path / "out" / "dog.png").unlink()
    argv = ["davis", "--davis", str(davis), "--evaluate-only", str(tmp_path / "out"), "--overlay", "png"]
    assert main([*argv, "--json", str(tmp_path / "scores.json")]) == 0
    assert (tmp_path / "out" / "dog.png").is_file()
    figures = json.loads((tmp_path / "scores.json").read_text())
    assert figures["settings"] == {"features": "pixels", "protocol": "videowalk"}  # as the masks were made
    assert figures["J-Mean"] > 0.5


@pytest.mark.parametrize("name", ["../../mine", "/tmp/mine", "..", ".hidden", "a/b", "a\x1b[31m", "-x", "n" * 300])
def test_a_sequence_whose_name_is_a_path_is_refused(name: str, tmp_path: Path):
    """The masks of such a sequence would be written outside of --out."""
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text(f"{name}\n")
    with pytest.raises(UserError, match="which is not the name of a folder: correct the line"):
        read_sequences(tmp_path)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"val\.txt is not readable .*: download DAVIS 2017 again"):
        read_sequences(tmp_path)

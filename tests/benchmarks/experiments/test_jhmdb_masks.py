"""JHMDB's masks in DAVIS's layout, and intervals of scores."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.io import savemat
from scipy.stats import norm

from benchmarks.experiments.real_video.jhmdb_masks import film_of, interval, main
from motionmae.evaluation.davis.dataset import read_mask, read_sequences
from tests.commands.functions import run as command

NAME = "A_Film__clap_u_nm_np1_fr_med_0"


def write_video(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for number in range(frames):
            picture = np.full((48, 64, 3), 20, np.uint8)
            picture[10:30, 5 + 2 * number : 25 + 2 * number] = 220
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture
def folders(tmp_path):
    for name, is_there in ((NAME, True), ("B_Film__clap_u_nm_np1_fr_med_0", False)):
        write_video(tmp_path / "videos" / name / f"{name}.mp4", 7)
        masks = np.zeros((96, 128, 6), np.uint8)  # twice as large as the video, and a frame less
        for number in range(6):
            masks[20:60, 10 + 4 * number : 50 + 4 * number, number] = is_there
        (tmp_path / "masks").mkdir(exist_ok=True)
        savemat(tmp_path / "masks" / f"{name}.mat", {"part_mask": masks})
    return tmp_path


def test_clips_and_masks_are_written_in_the_layout_that_the_command_reads(folders, capsys):
    out = folders / "davis"
    argv = ["make", "--videos", str(folders / "videos"), "--masks", str(folders / "masks"), "--out", str(out)]
    assert main(argv) == 0
    assert "1 clips; 1 left out" in capsys.readouterr().out
    (sequence,) = read_sequences(out)
    assert (sequence.name, len(sequence.frames), sequence.annotated) == (NAME, 6, True)
    for number, path in enumerate(sequence.masks):
        expected = np.zeros((48, 64), np.uint8)
        expected[10:30, 5 + 2 * number : 25 + 2 * number] = 1
        assert (read_mask(path) == expected).all()
    scores = folders / "scores.json"
    davis = ["--davis", str(out), "--features", "repeat", "--out", str(folders / "found"), "--json", str(scores)]
    assert command("davis", davis) == 0
    capsys.readouterr()
    assert main(["compare", str(scores), str(scores)]) == 0
    assert "scores - scores: +0.0, 95 % interval +0.0 to +0.0" in capsys.readouterr().out
    assert main(argv) == 2
    assert "is not empty" in capsys.readouterr().err


def test_scores_of_other_clips_are_not_compared(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"per_object": {name: {"J": 0.5, "F": 0.5}}}))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "other clips" in capsys.readouterr().err


def test_the_interval_is_that_of_the_normal_distribution_for_independent_films_and_wider_for_copies():
    values = norm.rvs(loc=50, scale=10, size=400, random_state=0)
    center, low, high = interval({f"film {number}": float(value) for number, value in enumerate(values)})
    error = norm.ppf(0.975) * values.std() / 20
    assert center == pytest.approx(values.mean())
    assert [low, high] == pytest.approx([center - error, center + error], abs=0.1)
    copies = {f"film{number}_clap_u_nm_np1_{cut}": float(values[number]) for number in range(100) for cut in range(4)}
    assert len({film_of(name) for name in copies}) == 100
    _, low, high = interval(copies)
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * values[:100].std() / 10, rel=0.1)

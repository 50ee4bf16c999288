"""Loss curves: steps logged twice by a resumed run count once; the command writes the PNG and the figures."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from motionmae.__main__ import main
from motionmae.config import load_config
from motionmae.errors import UserError
from motionmae.evaluation.loss_curves import plot_curves, read_history, smoothed
from motionmae.runs.history import RunHistory


def write_metrics(run: Path, rows: list[tuple[str, int, float | None]]) -> Path:
    run.mkdir()
    keys = ("loss_space", "loss_time", "lr", "clips_per_second")
    lines = [{"attempt": name, "step": step, **dict.fromkeys(keys, loss)} for name, step, loss in rows]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"torn')
    return run


def test_the_newest_attempt_counts(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "run", [("a", 1, 9.0), ("a", 2, 8.0), ("a", 3, 7.0), ("b", 2, 6.0), ("b", 4, 5.0)])
    history = read_history(run)
    assert [(row["step"], row["loss_space"]) for row in history.rows] == [(1, 9.0), (2, 6.0), (4, 5.0)]
    assert history.resumes == [2]


def test_a_step_without_a_finite_loss_leaves_a_gap(tmp_path: Path) -> None:
    history = read_history(write_metrics(tmp_path / "run", [("a", 1, 9.0), ("a", 2, None), ("a", 3, 7.0)]))
    plot_curves([history], [{"space": 1.0}], tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[2] == 3


def test_curves_are_smoothed_over_what_is_finite() -> None:
    assert smoothed([1.0, 2.0, 4.0]) == [1.0, 2.0, 4.0]  # few values stay as they are
    values = [0.0, 3.0] * 20
    values[5] = math.nan
    means = smoothed(values)
    assert means[:5] == [1.5, 1.0, 2.0, 1.0, 1.5]
    assert len(means) == 40


def test_a_head_that_is_not_trained_has_no_curve(tmp_path: Path) -> None:
    trained = read_history(write_metrics(tmp_path / "run", [("a", 1, 9.0), ("a", 2, 7.0)]))
    frame_only = RunHistory(tmp_path / "run")
    frame_only.rows = [row | {"loss_time": 0.0} for row in trained.rows]
    images = []
    for number, histories in enumerate(([trained, frame_only], [frame_only, frame_only])):
        plot_curves(histories, [{}, {}], tmp_path / f"{number}.png")
        image = cv2.imread(str(tmp_path / f"{number}.png"))
        images.append(image[: len(image) // 2, image.shape[1] // 2 :])  # the time head's panel
    coloured = [int((np.ptp(image.astype(int), axis=2) > 60).sum()) for image in images]
    assert coloured[0] > 0
    assert coloured[1] == 0


def test_a_run_that_logged_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no logged step"):
        read_history(tmp_path)


@pytest.mark.long
def test_command_writes_picture_and_figures(trained_run: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "curves.png", tmp_path / "figures.json"
    argv = ["curves", str(trained_run), "--held-out", load_config(str(trained_run / "config.yaml")).data.shards]
    assert main([*argv, "--out", str(out), "--json", str(figures)]) == 0
    assert cv2.imread(str(out)).std() > 10
    rows = json.loads(figures.read_text())
    assert [(row["head"], row["steps"]) for row in rows] == [("space", 9), ("time", 9)]
    assert all(row["last"] < row["first"] for row in rows)
    assert all(-1 < row["explained_held_out"] < 1 for row in rows)
    assert 0.5 < rows[0]["predicting_the_mean"] <= 1.0  # normalised frames have unit variance around their mean

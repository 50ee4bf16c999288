"""Curves: what a resumed run logged twice counts once, and the picture and figures are there."""

import json
from pathlib import Path

import cv2
import pytest

from motionmae.__main__ import main
from motionmae.errors import UserError
from motionmae.evaluation.curves import plot_curves, read_history


def write_metrics(run: Path, rows: list[tuple[str, int, float | None]]) -> Path:
    run.mkdir()
    keys = ("loss_space", "loss_time", "lr", "clips_per_second")
    lines = [{"incarnation": name, "step": step, **dict.fromkeys(keys, loss)} for name, step, loss in rows]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"torn')
    return run


def test_the_newest_incarnation_counts(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "run", [("a", 1, 9.0), ("a", 2, 8.0), ("a", 3, 7.0), ("b", 2, 6.0), ("b", 4, 5.0)])
    history = read_history(run)
    assert [(row["step"], row["loss_space"]) for row in history.rows] == [(1, 9.0), (2, 6.0), (4, 5.0)]
    assert history.resumes == [2]


def test_a_step_without_a_finite_loss_leaves_a_gap(tmp_path: Path) -> None:
    history = read_history(write_metrics(tmp_path / "run", [("a", 1, 9.0), ("a", 2, None), ("a", 3, 7.0)]))
    plot_curves([history], [{"space": 1.0}], tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[2] == 3


def test_a_run_that_logged_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no logged step"):
        read_history(tmp_path)


@pytest.mark.long
def test_command_writes_picture_and_figures(trained_run: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "curves.png", tmp_path / "figures.json"
    assert main(["curves", str(trained_run), "--out", str(out), "--json", str(figures)]) == 0
    assert cv2.imread(str(out)).std() > 10
    rows = json.loads(figures.read_text())
    assert [(row["head"], row["steps"]) for row in rows] == [("space", 9), ("time", 9)]
    assert all(row["last"] < row["first"] for row in rows)
    assert 0.5 < rows[0]["predicting_the_mean"] <= 1.0  # normalised frames have unit variance around their mean

"""Losses in the report: their curves and the table. Steps logged twice by a resumed run count once."""

import json
import re
from pathlib import Path

import pytest

from monitoring.report.losses import HeadLoss, head_losses, loss_table
from monitoring.report.page import render
from motionmae.__main__ import main
from motionmae.runs.history import RunHistory
from tests.monitoring.report.test_report import write_run
from tests.monitoring.runs import metrics_row


def write_metrics(run: Path, rows: list[tuple[str, int, float | None]], **changes: float) -> RunHistory:
    run.mkdir()
    lines = [
        {**metrics_row(step), "attempt": name, "time": step, "loss_space": loss, "loss_time": loss, **changes}
        for name, step, loss in rows
    ]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"torn')
    return RunHistory(run)


def chart_of(page: str, title: str) -> str:
    (chart,) = re.findall(rf"<h3>{title}</h3>(.*?)</svg>", page, re.DOTALL)
    return chart


def curves_of(page: str, title: str) -> list[str]:
    """Return the SVG paths of the curves in a chart."""
    return re.findall(r'class="curve".*? d="(.*?)"', chart_of(page, title))


def test_the_newest_attempt_counts(tmp_path: Path) -> None:
    rows = [("a", 1, 9.0), ("a", 2, 8.0), ("a", 3, 7.0), ("b", 2, 6.0), ("b", 4, 5.0)]
    history = write_metrics(tmp_path / "run", rows)
    assert [(row["step"], row["loss_space"]) for row in history.rows] == [(1, 9.0), (2, 6.0), (4, 5.0)]
    assert history.resumes == [2]
    losses, _ = head_losses(history, None)
    assert [(loss.head, loss.steps, loss.first, loss.last) for loss in losses] == [
        ("space", 4, 9.0, 20 / 3),
        ("time", 4, 9.0, 20 / 3),
    ]


def test_a_step_without_a_finite_loss_leaves_a_gap(tmp_path: Path) -> None:
    history = write_metrics(tmp_path / "run", [("a", 1, 9.0), ("a", 2, None), ("a", 3, 7.0)])
    (curve,) = curves_of(render([history]), "loss, space head")
    assert curve.count("M") == 2
    assert [loss.last for loss in head_losses(history, None)[0]] == [8.0, 8.0]


def test_a_head_that_is_not_trained_has_no_curve(tmp_path: Path) -> None:
    rows = [("a", 1, 9.0), ("a", 2, 7.0)]
    trained = write_metrics(tmp_path / "run", rows)
    frame_only = write_metrics(tmp_path / "frame_only", rows, loss_time=0.0)
    assert [loss.head for loss in head_losses(frame_only, None)[0]] == ["space"]
    page = render([trained, frame_only])
    assert "L" in curves_of(page, "loss, time head")[0]
    assert "loss, time head" not in render([frame_only])


def test_the_loss_of_predicting_the_mean_is_a_dashed_line(tmp_path: Path) -> None:
    history = write_metrics(tmp_path / "run", [("a", 1, 9.0), ("a", 2, 7.0)])
    losses = [HeadLoss("run", "space", 2, 9.0, 7.0, 8.0, None)]
    page = render([history], losses=losses)
    assert "predicting the mean" in chart_of(page, "loss, space head")
    assert len(curves_of(page, "loss, space head")) == 2
    assert len(curves_of(page, "loss, time head")) == 1
    assert loss_table(losses)[1] == [["run", "space", "2", "9.0000", "7.0000", "8.0000", "0.88"]]


def test_a_run_that_logged_nothing_has_no_losses(tmp_path: Path) -> None:
    assert head_losses(RunHistory(tmp_path), None) == ([], "")


def test_a_run_without_its_shards_has_a_report_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, figures = write_run(tmp_path, "away", **{"data.shards": "no/such"}), tmp_path / "figures.json"
    assert main(["report", str(run), "--no-pictures", "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    assert "note: away: the loss of predicting the mean is unknown (" in printed
    assert "away: the loss of predicting the mean is unknown (" in (run / "report.html").read_text()
    assert [row["predicting_the_mean"] for row in json.loads(figures.read_text())] == [None, None]
    assert re.search(r"│ away +│ time +│ +60 │", printed)

"""The report of a run that really trained, with its reconstructions and losses."""

import base64
import json
import shutil
from pathlib import Path

import pytest

from motionmae.__main__ import main
from motionmae.config import load_config


@pytest.mark.long
def test_command_writes_one_file_with_reconstructions_of_several_steps(trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(trained_run), "--out", str(out)]) == 0
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 3 * 5  # checkpoints x rows of Figure 3
    assert "tiny, step 9" in page
    assert "loss, time head" in page


def test_pictures_that_the_run_has_drawn_are_shown(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "reconstructions").mkdir()
    contents = [f"picture {step}".encode() for step in range(5)]
    for step, content in enumerate(contents):
        (run / f"reconstructions/step-{step:08d}.png").write_bytes(content)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    shown = [base64.b64encode(content).decode() in page for content in contents]
    assert shown == [True, False, True, False, True]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder and holds no weights: give a run, " in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert main(["report", str(tmp_path)]) == 2
    assert "give the folder of a run that has begun" in capsys.readouterr().err


@pytest.mark.long
def test_command_writes_the_losses(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figures = tmp_path / "report.html", tmp_path / "figures.json"
    argv = ["report", str(trained_run), "--held-out", load_config(str(trained_run / "config.yaml")).data.shards]
    assert main([*argv, "--no-pictures", "--out", str(out), "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())
    assert [(row["head"], row["steps"]) for row in rows] == [("space", 9), ("time", 9)]
    assert all(row["last"] < row["first"] for row in rows)
    assert all(-1 < row["explained_held_out"] < 1 for row in rows)
    assert 0.5 < rows[0]["predicting_the_mean"] <= 1.0  # normalised frames have unit variance around their mean
    printed = capsys.readouterr().out
    for text in ("explained, held out", f"{rows[0]['explained_held_out']:.3f}", f"{rows[1]['last']:.4f}"):
        assert text in printed
        assert text in out.read_text()

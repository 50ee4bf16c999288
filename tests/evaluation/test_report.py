"""The report of a run that really trained, its reconstructions in it."""

import base64
import shutil
from pathlib import Path

import pytest

from motionmae.__main__ import main


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
    assert "give the directory of a run that has begun" in capsys.readouterr().err

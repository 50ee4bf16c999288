"""The report of a run that really trained, its reconstructions in it."""

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


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "give the folder of a run that has begun" in capsys.readouterr().err

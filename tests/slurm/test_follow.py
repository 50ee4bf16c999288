from pathlib import Path

import pytest

from slurm.follow import LogTail, follow
from tests.slurm.jobs import Starter


def test_a_log_is_printed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = LogTail(path)
    assert tail.new_text() == ""
    path.write_text("one\ntw")
    assert tail.new_text() == "one\n"
    assert tail.new_text() == ""
    with path.open("a") as file:
        file.write("o\nthree ü\n")
    assert tail.new_text() == "two\nthree ü\n"


@pytest.mark.parametrize(
    ("act", "status", "last"),
    [
        ("done", 0, "COMPLETED"),
        ("exit 3", 3, "the run failed; the logs of all ranks are in"),
        ("exit 143", 143, "was stopped; the same command resumes it"),
    ],
)
def test_following_ends_with_the_job_s_own_status(
    act: str, status: int, last: str, tmp_path: Path, start: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    record = start(tmp_path, {0: [act]})
    assert follow(record, tmp_path) == status
    lines = capsys.readouterr().out.splitlines()
    assert any("Loading pickle" in line for line in lines)
    assert last in lines[-1]

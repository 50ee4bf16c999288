"""The live view, as a terminal shows it."""

from pathlib import Path

import pytest
from rich.console import Console

from monitoring.watch import sparkline, view
from motionmae.__main__ import main
from motionmae.runs.history import RunHistory
from tests.monitoring.report.test_report import write_run


def shown(run: Path, width: int, now: float | None = None) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view(RunHistory(run), width, now))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [50, 80, 160])
def test_it_fits_the_terminal_and_shows_the_key_figures(width: int, tmp_path: Path):
    lines = shown(write_run(tmp_path, "demo"), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("demo", "finished", "60 / 60", "loss space", "goodput", "slowest rank", "nonfinite"):
        assert words in text
    assert "1 on node3" in text


def test_a_run_that_is_silent_is_shown_as_such(tmp_path: Path):
    run = write_run(tmp_path, "demo")
    events = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("\n".join(events[:-1]) + "\n")  # without its finish
    last = RunHistory(run).attempts[-1].last_sign
    assert "silent" in shown(run, 80, last + 600)[0]
    assert "last row 10 min 00 s ago" in shown(run, 120, last + 600)[0]


def test_a_sparkline_has_the_curves_shape():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, None, 3], 3) == "▁ ▁"
    assert len(sparkline(list(range(1001)), 20)) <= 20
    assert sparkline([None, None], 5) == ""


def test_it_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["watch", str(write_run(tmp_path, "demo"))]) == 0
    assert "60 / 60" in capsys.readouterr().out


@pytest.mark.parametrize("every", ["-1", "0", "nan", "inf"])
def test_an_impossible_interval_is_refused(every: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["watch", str(write_run(tmp_path, "demo")), "--every", every]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --every ")
    assert error.count("\n") == 1


def test_a_ctrl_c_ends_it_and_leaves_what_it_showed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = write_run(tmp_path, "demo")
    events = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("\n".join(events[:-1]) + "\n")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("motionmae.commands.watch.time.sleep", interrupted)
    assert main(["watch", str(run)]) == 0
    assert "60 / 60" in capsys.readouterr().out

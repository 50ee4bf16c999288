"""The live view, as a terminal shows it."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.style import Style

from monitoring import watch
from monitoring.goodput import CATEGORIES, Goodput
from monitoring.watch import sparkline, view
from motionmae.__main__ import main
from motionmae.runs.events import Phase
from motionmae.runs.history import RunHistory, RunState
from tests.monitoring.report.test_report import write_run
from tests.monitoring.runs import history_of, metrics_row


def shown(run: Path, width: int, now: float | None = None) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view(RunHistory(run), width, now))
    return captured.get().splitlines()


def test_every_phase_and_state_has_a_colour_of_rich():
    assert set(watch._STYLES) == set(Phase)
    assert set(watch.STATE_STYLES) == set(RunState)
    for style in (*watch._STYLES.values(), *watch.STATE_STYLES.values()):
        Style.parse(style)  # raises an error for an unknown colour


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


def test_it_reads_the_run_again_until_the_run_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run, waits = write_run(tmp_path, "demo"), []
    *events, finish = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(events))

    def train(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            (run / "events.jsonl").write_text("".join([*events, finish]))
        assert len(waits) < 3, "the run has finished"

    monkeypatch.setattr("motionmae.commands.watch.time.sleep", train)
    assert main(["watch", str(run), "--every", "7"]) == 0
    assert waits == [7.0, 7.0]
    assert "demo  finished" in capsys.readouterr().out


READY = {"kind": "ready", "step": 0, "time": 108.0, "total_steps": 10}
ROW: dict[str, Any] = {**metrics_row(4), "time": 120.0}


def lines_of(part: RenderableType, width: int = 100) -> list[str]:
    """Return the lines of a panel as a terminal shows them, without the frame, one space between words."""
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(part)
    return [" ".join(line.strip("│╭╮─╰╯ ").split()) for line in captured.get().splitlines()]


@pytest.mark.parametrize(
    ("hosts", "shown_hosts"), [(["a"], "a"), (list("abcd"), "a, b, c, d"), (list("abcde"), "a, b, c, d and 1 more")]
)
def test_the_head_names_four_hosts(hosts: list[str], shown_hosts: str, tmp_path: Path):
    start = {"kind": "start", "step": 0, "time": 101.0, "world": 8, "hosts": hosts, "attempt": "b"}
    events = [start, {**READY, "attempt": "b"}]
    head = watch._header(history_of(tmp_path / "demo", events), 108.0)
    assert head.plain.endswith(f"  8 ranks on {shown_hosts}; attempt 2; last row 0 s ago")


@pytest.mark.parametrize(("idle", "style"), [(119.0, "bright_black"), (121.0, "bold red")])
def test_a_row_that_is_two_minutes_old_is_red(idle: float, style: str, tmp_path: Path):
    head = watch._header(history_of(tmp_path / "demo", [READY], [ROW]), 120.0 + idle)
    assert head.spans[-1].style == style
    assert head.plain[head.spans[-1].start :].startswith("; last row ")


def test_an_ended_run_has_no_last_row(tmp_path: Path):
    events = [READY, {"kind": "finish", "step": 4, "time": 121.0}]
    head = watch._header(history_of(tmp_path / "demo", events, [ROW]), 500.0)
    assert head.plain == "demo  finished  2 ranks on n; attempt 1"
    assert "cyan" not in str([span.style for span in head.spans])


def test_the_time_left_is_that_of_the_last_five_rows(tmp_path: Path):
    rows = [metrics_row(step, seconds=seconds) for step, seconds in enumerate((100, 1, 2, 3, 4, 5), 1)]
    (line,) = lines_of(watch._progress(history_of(tmp_path / "demo", [READY], rows)))
    assert line.startswith("step 6 / 10, epoch 0.6 ")
    assert line.endswith(" 12 s left")  # four steps of three seconds
    ten = [metrics_row(10)]
    (line,) = lines_of(watch._progress(history_of(tmp_path / "done", [READY], ten)))
    assert line.endswith(" done")
    (line,) = lines_of(watch._progress(history_of(tmp_path / "unknown", (), ten)))
    assert line.startswith("step 10 / 10")


def test_losses_are_the_last_known_ones(tmp_path: Path):
    rows = [metrics_row(1, loss=0.12345), metrics_row(2, loss=None, grad_norm=None, lr=0.5)]
    rows[0]["grad_norm"] = None
    found = lines_of(watch._losses(history_of(tmp_path / "demo", (), rows), 24))
    assert found[0].startswith("all steps")
    assert next(line for line in found if line.startswith("loss ")).endswith(" 0.1235")
    assert "grad norm -" in found
    assert next(line for line in found if line.startswith("lr")).endswith(" 0.5")


def test_speed_is_weighted_by_the_steps_of_a_row(tmp_path: Path):
    rows = [
        metrics_row(3, steps=3, seconds=8.0, clips_per_second=10.0, slowest_rank=1, slowest_score=2.0),
        metrics_row(4, steps=1, seconds=16.0, clips_per_second=50.0, checkpoint_seconds=10.0, slowest_rank=0),
    ]
    history = history_of(tmp_path / "demo", (), rows)
    found = lines_of(watch._speed(history, history.rows))
    assert found[0].startswith("last 2 rows")
    assert {"clips per second 20.0", "step 10.000 s"} <= set(found)  # (3 * 10 + 50) / 4 and (3 * 8 + 16) / 4
    shares = {line.rsplit(" ", 1)[0].rstrip("█ "): line.rsplit(" ", 1)[1] for line in found if line.endswith("%")}
    assert shares == {  # of 10 seconds in steps and 2.5 in saves
        "forward": "40%", "backward": "20%", "optimizer": "10%", "data wait": "10%", "checkpoint": "20%",
        "memory copy": "0%", "validation": "0%", "other": "0%", "slowest rank 1 on n": "50%",
    }  # fmt: skip
    bars = {line.split("█")[0].strip(): line.count("█") for line in found if "█" in line}
    assert bars == {"forward": 5, "backward": 2, "optimizer": 1, "data wait": 1, "checkpoint": 2}  # of 12


@pytest.mark.parametrize(("waiting", "red"), [(2.0, False), (2.1, True)])
def test_waiting_for_data_is_red_above_a_fifth(waiting: float, red: bool, tmp_path: Path):
    history = history_of(tmp_path / "demo", (), [metrics_row(1, seconds=10.0, data_wait_seconds=waiting)])
    console = Console(width=100, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(watch._speed(history, history.rows))
    assert ("\x1b[1;31m" in captured.get()) == red


def test_goodput_names_what_takes_a_thousandth_the_largest_first():
    badput = dict.fromkeys(CATEGORIES, 0.0) | {"queue_wait": 500.0, "init": 1.0, "restore": 0.9, "data_wait": 100.0}
    found = lines_of(watch._goodput(Goodput(1000.0, 250.0, badput)))
    assert found[0].startswith("16 min 40 s since the start")
    assert found[1:-1] == [
        "goodput 25.0%", "without queue 50.0%", "waiting in the queue 8 min 20 s 50.0%",
        "waiting for data 1 min 40 s 10.0%", "starting 1 s 0.1%",
    ]  # fmt: skip
    assert lines_of(watch._goodput(Goodput(0.0, 0.0, dict.fromkeys(CATEGORIES, 0.0))))[1] == "goodput 0.0%"


def test_the_last_eight_events_say_what_matters(tmp_path: Path):
    events: list[dict[str, Any]] = [
        {"kind": "picture", "step": 1, "path": "old.png"},
        {"kind": "checkpoint", "step": 2, "path": "step-2", "blocking": 1.0},
        {"kind": "validation", "step": 3, "seconds": 1.0, "top1": 25.0},
        {"kind": "validation", "step": 3, "seconds": 1.0, "error": "gone"},
        {"kind": "nonfinite", "step": 4, "cause": "loss"},
        {"kind": "preemption", "step": 1234, "reason": "preempted"},
        {"kind": "picture", "step": 5, "path": "p" * 70},
        {"kind": "resume", "step": 6, "seconds": 1.0},
        {"kind": "ready", "step": 6, "total_steps": 9, "time": 190.0},
    ]
    panel = watch._recent_events(history_of(tmp_path / "demo", events), 170.0)
    assert lines_of(panel, 160)[1:-1] == [
        "1 min 00 s ago checkpoint step 2 step-2",
        "1 min 00 s ago validation step 3 top-1 25.0 %",
        "1 min 00 s ago validation step 3 gone",
        "1 min 00 s ago nonfinite step 4 loss",
        "1 min 00 s ago preemption step 1,234 preempted",
        f"1 min 00 s ago picture step 5 {'p' * 60}",
        "1 min 00 s ago resume step 6",
        "0 s ago ready step 6",  # the clock of its node is ahead
    ]
    table = panel.renderable
    kinds = list(table.columns[1].cells)  # type: ignore[union-attr]
    assert [str(kind.style) for kind in kinds] == ["", "", "red", "red", "", "", "", ""]  # type: ignore[union-attr]


def test_a_curve_of_many_values_is_averaged_and_scaled():
    assert sparkline([0, 2, 4, 6, 14], 3) == "▁▃█"  # pairs: 1, 5, and 14
    assert sparkline([5], 10) == "▁"
    assert len(sparkline(list(range(9)), 4)) == 3  # three values a character
    assert sparkline([0, 1], 2) == "▁█"


def test_narrow_and_wide_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    widths, recent = [], []
    monkeypatch.setattr(watch, "_losses", lambda history, width: widths.append(width) or "L")
    monkeypatch.setattr(watch, "_speed", lambda history, rows: recent.append(len(rows)) or "S")
    history = history_of(tmp_path / "demo", [READY], [metrics_row(step) for step in range(1, 61)])
    for width in (59, 60, 99, 100):
        view(history, width, 120.0)
    assert widths == [24, 24, 24, 32]
    assert recent == [50] * 4
    kinds = [type(view(history, width, 120.0).renderables[2]).__name__ for width in (59, 60)]  # type: ignore[union-attr]
    assert kinds == ["Group", "Columns"]
    assert len(view(history_of(tmp_path / "young"), 80, 120.0).renderables) == 2  # type: ignore[union-attr]

"""The report of a run that was preempted twice and killed once, as a file, as numbers, and in a real browser."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from monitoring.goodput import goodput_of
from monitoring.report import charts
from monitoring.report.page import render
from monitoring.report.pictures import Picture
from motionmae.config import load_config, save_config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind, LineFile
from motionmae.runs.history import RunHistory
from tests.monitoring.runs import metrics_row
from tests.monitoring.test_goodput import FakeRun


def write_run(folder: Path, name: str = "long<b>", **changes: str) -> Path:
    """A run of 60 steps: preempted at 20 and 40, killed at 50 with five steps not saved."""
    run = RunFolder(folder / name)
    run.create()
    fake = FakeRun()

    def train(steps: int) -> None:
        for _ in range(steps):
            fake.train(1)
            row = fake.rows.pop()
            fake.rows.append({**metrics_row(fake.step, seconds=1.3, slowest_rank=1, slowest_score=1.5), **row})

    fake.event("submitted")
    fake.spend("queue_wait", 50)
    for steps in (20, 20, 5):
        fake.start()
        fake.rows[-1]["total_steps"] = 60
        fake.rows[-3 if fake.attempts > 1 else -2] |= {"world": 2, "hosts": ["node1", "node2"]}
        train(steps)
        fake.save()
        fake.rows[-1] |= {"bytes": 10**6, "seconds": 3.0}
        if steps == 20:
            fake.event("stop", reason=EndReason.PREEMPTED)
            fake.spend("queue_wait", 30)
    train(5)
    fake.spend("downtime", 40)
    fake.start()
    fake.rows[-1]["total_steps"] = 60
    fake.rows[-3] |= {"world": 2, "hosts": ["node1", "node3"]}
    fake.event("nonfinite", cause="loss", ranks=[1], samples=[7])
    train(15)
    fake.event("finish")
    events, metrics = LineFile(run.events), LineFile(run.metrics)
    for row in fake.rows:
        (events if "kind" in row else metrics).append(row)
    events.close()
    metrics.close()
    save_config(load_config("demo", [f"{key}={value}" for key, value in changes.items()]), run.config)
    return run.path


@pytest.fixture
def history(tmp_path: Path) -> RunHistory:
    return RunHistory(write_run(tmp_path))


def test_attempts_of_a_run(history: RunHistory):
    assert [(attempt.first_step, attempt.last_step, attempt.end) for attempt in history.attempts] == [
        (0, 20, EndReason.PREEMPTED), (20, 40, EndReason.PREEMPTED), (40, 50, None), (45, 60, EndReason.FINISHED),
    ]  # fmt: skip
    assert history.resumes == [21, 41, 46]
    assert [row["step"] for row in history.rows] == list(range(1, 61))
    assert history.state == "finished"
    assert history.host_of(1) == "node3"


def test_its_goodput_adds_up_to_the_elapsed_time(history: RunHistory):
    goodput = goodput_of(history)
    assert goodput.productive + sum(goodput.badput.values()) == pytest.approx(goodput.elapsed, rel=0.01)
    assert goodput.elapsed == history.events[-1]["time"] - history.events[0]["time"]
    assert goodput.badput["queue_wait"] == pytest.approx(110)
    assert goodput.badput["lost_work"] == pytest.approx(5 * 1.25 + 1, rel=0.05)
    page = render([history])
    assert "100.0%" in re.findall(r"together</td>.*?</tr>", page)[0]


def test_the_page_is_self_contained_and_escapes_names(history: RunHistory):
    page = render([history], [Picture("step <1>", [("masked", "data:image/png;base64,AAAA")])])
    assert not re.findall(r'(?:https?:)?//[\w.]|@import|url\(|<link|src="(?!data:)', page)
    assert "<b>" not in page.replace('<div class="card"><b>', "")
    assert "long&lt;b&gt;" in page
    assert "step &lt;1&gt;" in page
    for words in (
        "preempted or out of time, after a save",
        "node3",
        "step skipped",
        "samples [7]",
        "work done again",
        "mask.kind",
    ):
        assert words in page
    assert page.count('class="mark"') % 3 == 0  # three resumes in each chart over steps


def test_control_characters_of_a_stranger_s_run_are_escaped(history: RunHistory):
    hostile = "\x1b[31m\u202e<b>\u2028\x9b"
    page = render([history], notes=[hostile])
    assert r"\x1b[31m\u202e&lt;b&gt;\u2028\x9b" in page
    assert not {"\x1b", "\u202e", "\u2028", "\x9b"} & set(page)


def test_timeline_and_goodput_agree_on_idle_time(tmp_path: Path):
    """Nobody queues the run until a person submits it again; a failure that Slurm tries again is queued at once."""
    run, fake = RunFolder(tmp_path / "stopped"), FakeRun()
    run.create()

    def live() -> None:
        fake.start(init=0, restore=0)
        fake.rows[-1]["total_steps"] = 60
        next(row for row in reversed(fake.rows) if row["kind"] == "start")["world"] = 1
        fake.train(10)

    live()
    fake.event("stop", reason=EndReason.STOPPED)
    fake.spend("downtime", 40)
    fake.event("submitted")
    fake.rows[-1]["attempt"] = ""
    fake.spend("queue_wait", 20)
    live()
    fake.spend("downtime", 7)
    fake.event("failure", reason=EndReason.NODE_DOWN, again=True)
    fake.spend("queue_wait", 30)
    live()
    events, metrics = LineFile(run.events), LineFile(run.metrics)
    for row in fake.rows:
        (events if "kind" in row else metrics).append({**metrics_row(max(row["step"], 1)), **row})
    events.close()
    metrics.close()
    history = RunHistory(run.path)
    page = render([history])
    (strip,) = re.findall(r'<svg class="strip".*?</svg>', page, re.DOTALL)
    drawn = [(float(width), what) for width, what in re.findall(r'width="([\d.]+)".*?<title>(.*?)</title>', strip)]
    for cause, name in (("downtime", "; down"), ("queue_wait", "; waiting in the queue")):
        seconds = sum(width for width, what in drawn if what.endswith(name)) / 1000 * goodput_of(history).elapsed
        assert seconds == pytest.approx(goodput_of(history).badput[cause], rel=0.01), cause
    assert goodput_of(history).badput["downtime"] == pytest.approx(47)


def test_a_report_of_two_runs_shows_their_config_differences(tmp_path: Path):
    folders = [write_run(tmp_path, "one"), write_run(tmp_path, "two", **{"mask.ratio": "0.8"})]
    page = render([RunHistory(folder) for folder in folders])
    (table,) = re.findall(r"Config: differences</h2>(.*?)</table>", page, re.DOTALL)
    assert re.findall(r"<td>(.*?)</td>", table) == ["mask.ratio", "0.75", "0.8"]
    assert "loss, space head" in page


def test_a_run_that_has_only_just_begun_has_a_report(tmp_path: Path):
    run = RunFolder(tmp_path / "young")
    run.create()
    with pytest.raises(UserError, match="has no events"):
        RunHistory(run.path).require_events()
    events = LineFile(run.events)
    events.append({"attempt": "", "kind": Kind.SUBMITTED.value, "step": 0, "time": 1.0})
    assert "nothing logged" in render([RunHistory(run.path)])
    events.append({"attempt": "a", "kind": Kind.START.value, "step": 0, "time": 9.0, "world": 1, "hosts": ["h"]})
    events.close()
    assert "starting" in render([RunHistory(run.path)])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="apt-get install chromium")
@pytest.mark.parametrize("width", [500, 1500])
def test_a_browser_lays_it_out_without_an_error_or_a_sideways_scroll(history: RunHistory, width: int, tmp_path: Path):
    page = tmp_path / "report.html"
    page.write_text(render([history]))
    probe = """<script>
    const chart = document.querySelector(".chart"), box = chart.getBoundingClientRect();
    chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width, clientY: box.top + 40}));
    const tip = chart.querySelector(".tip").innerText, root = document.documentElement;
    document.title = [innerWidth, root.scrollWidth, tip].join("|");
    </script>"""
    page.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    command = ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    inner, scroll, tip = re.findall(r"<title>(.*?)</title>", shown.stdout, re.DOTALL)[0].split("|")
    assert int(scroll) <= int(inner)
    assert tip.startswith("step 60")
    assert "CONSOLE" not in shown.stderr


def test_a_long_curve_is_thinned_and_keeps_its_gaps_and_ends():
    steps = list(range(1, 100_001))
    values = [None if 40_000 <= step < 60_000 else step for step in steps]
    thinned = charts.thin(charts.Curve("", steps, values, "red"))
    assert len(thinned.steps) <= charts.POINTS
    assert thinned.steps[-1] == 100_000
    assert thinned.values.count(None) > 40
    assert all(a < b for a, b in itertools.pairwise(value for value in thinned.values if value is not None))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.98, 1.02), (-3, 40_000), (2, 2), (1e-9, 3e-9)])
def test_ticks_are_round_and_inside(low: float, high: float):
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234, "1.23k"), (2.5e6, "2.5M"), (3e-5, "3e-05"), (0.25, "0.25"), (-4000, "-4k")]
)
def test_short_numbers(value: float, text: str):
    assert charts.short_number(value) == text

"""Every command that prints a table or a picture, on names and errors that hold markup and control characters."""

import ast
import io
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from motionmae import screen
from motionmae.__main__ import main
from motionmae.commands import app, davis, predict, report, test
from motionmae.commands.doctor import gpu
from motionmae.config import load_config
from motionmae.errors import UserError
from motionmae.evaluation.davis.metrics import Score
from motionmae.gpu_checks.check import CheckResult, Setting, Verdict
from motionmae.screen import Table, TaskText, draw_bar, make_console, progress_of, show
from motionmae.text import printable
from motionmae.training.validation.confusion import draw_confusion
from tests.commands.functions import make_shards, preview, stats, verify
from tests.data_tools.videos import draw_frames, write_video
from tests.test_text import ROOT

HOSTILE = "[/x][red]:smile:\x1b]0;title\x07\x1b[2J\u202egpj\n\r\x9b31m $a_{$"
SHOWN = r"[/x][red]:smile:\x1b]0;title\x07\x1b[2J\u202egpj\n\r\x9b31m $a_{$"
_RAW = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that must not reach a terminal. A newline ends the lines of the product itself."""


def assert_safe(text: str, *expected: str) -> None:
    assert not _RAW.search(text), ascii(_RAW.findall(text))
    plain = re.sub(r"[\s│┃]+", "", text)
    for part in expected:
        assert re.sub(r"\s+", "", part) in plain


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_a_table_shows_titles_headings_and_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE, HOSTILE)
    grid = Table.grid()
    grid.add_row(HOSTILE)
    show(table)
    show(grid)
    show(HOSTILE)
    shown = capsys.readouterr().out
    assert shown.count(SHOWN) == 7
    assert_safe(shown)
    console = Console(width=400)  # a console of somebody else, with markup
    with console.capture() as captured:
        console.print(table)
    assert captured.get().count(SHOWN) == 5


def test_a_progress_bar_shows_names_as_they_are() -> None:
    console = make_console(width=400, force_terminal=True, color_system=None, record=True)
    with Progress(TaskText(), TaskText("details"), console=console, auto_refresh=False) as bar:
        bar.add_task(HOSTILE, details=HOSTILE)
    assert console.export_text().count(SHOWN) >= 2


def test_a_line_is_wrapped_only_where_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    show("word " * 10)
    show("word " * 10, wrap=False)
    wrapped, whole = capsys.readouterr().out.split("word word word word word word", 1)
    assert max(map(len, wrapped.splitlines())) <= 20
    assert whole == " word" * 4 + " \n"


@pytest.mark.parametrize(("encoding", "bar"), [("ascii", "####"), ("utf-8", "████"), ("no-codec", "####")])
def test_a_bar_is_drawn_in_characters_that_the_terminal_has(
    monkeypatch: pytest.MonkeyPatch, encoding: str, bar: str
) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding=encoding))
    assert draw_bar(4) == bar
    assert draw_bar(0) == ""


def test_a_progress_bar_shows_what_is_done_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "make_console", lambda: Console(width=80, force_terminal=True, file=io.StringIO()))
    for transient, disable in ((False, False), (True, False), (False, True)):
        with progress_of(transient=transient, disable=disable) as bar:
            bar.update(bar.add_task("[b]shards", total=7), completed=3)
        shown = bar.console.file.getvalue()  # type: ignore[attr-defined]
        if disable:
            assert not shown.strip()
            continue
        last = shown.splitlines()[-1] if transient else shown
        assert ("[b]shards" in last, "3/7" in last, "left" in last) == (not transient,) * 3


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError(HOSTILE)

    assert app.run(fail) == 2
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


def test_a_traceback_is_readable_and_safe(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise RuntimeError(HOSTILE.replace("\n", ""))

    assert app.run(fail) != 0
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.count("\n") > 3
    assert_safe(error, SHOWN.replace(r"\n", ""))


@pytest.fixture
def hostile_run(tmp_path: Path) -> Path:
    run = tmp_path / "[" / f"x][red]{HOSTILE.replace('/', '')}"
    run.mkdir(parents=True)
    now = time.time()
    common = {"attempt": "a", "step": 3}
    events: list[dict[str, Any]] = [
        {"kind": "start", "time": now - 60, "world": 1, "host": HOSTILE, "hosts": [HOSTILE], "code": HOSTILE},
        {"kind": "ready", "time": now - 50, "total_steps": 100},
        {"kind": HOSTILE, "time": now - 40, "path": HOSTILE},
        {"kind": "nonfinite", "time": now - 40, "cause": HOSTILE},
        {"kind": "checkpoint_damaged", "time": now - 30, "reason": HOSTILE},
        {"kind": "failure", "time": now - 20, "reason": HOSTILE, "node": HOSTILE},
        {"kind": "stop", "time": now - 10, "reason": "crashed", "error": HOSTILE},
    ]
    seconds = {"step_seconds": 1.0, "data_wait_seconds": 0.1, "forward_seconds": 0.5}
    speed = {"epoch": 0.5, "clips_per_second": 2.0, "slowest_rank": 0, "slowest_score": 2.0}
    metrics = {"time": now - 45, "loss": 1.0, f"loss_{HOSTILE}": 0.5, **seconds, **speed}
    (run / "events.jsonl").write_text("".join(json.dumps({**common, **row}) + "\n" for row in events))
    (run / "metrics.jsonl").write_text(json.dumps({**common, **metrics}) + "\n")
    return run


def test_watch(hostile_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(hostile_run), "--once"]) == 0
    assert_safe(capsys.readouterr().out, "rank on " + SHOWN, SHOWN[:60])


def test_runs(hostile_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(hostile_run.parent)]) == 0
    captured = capsys.readouterr()
    assert_safe(captured.out + captured.err, "failed")


def test_predict(capsys: pytest.CaptureFixture[str]) -> None:
    scored = {"video": HOSTILE, "classes": [{"score": 0.5, "class": HOSTILE}]}
    predict._print([scored, {"video": HOSTILE, "classes": [], "problem": HOSTILE}], timeline=False)
    assert_safe(capsys.readouterr().out, SHOWN, "not read: " + SHOWN)


def test_report(hostile_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(hostile_run), "--no-pictures"]) == 0
    captured = capsys.readouterr()
    assert_safe(captured.out + captured.err, r"1 of 7 rows are damaged and left out (row 6, reason: ", "wrote ")


def test_checkpoints(hostile_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hostile_run / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"step": HOSTILE}))
    assert main(["checkpoints", str(hostile_run)]) == 1
    captured = capsys.readouterr()
    assert_safe(captured.out + captured.err, "step-00000003")


def test_tables_of_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = {"J": Score(0.5, 0.5, 0.5), "F": Score(0.5, 0.5, 0.5)}
    davis._report({HOSTILE: score}, None, tmp_path / HOSTILE.replace("/", ""), None)
    report._print_table(["run", "head"], [[HOSTILE, HOSTILE]])
    figures = {"top1": 1.0, "top5": 1.0, "mean_class": 1.0, "videos": 1, "missing": 1, "views": 1, "parameters": 1}
    result: Any = SimpleNamespace(**figures, gflops_per_view=1.0, gflops=1.0, per_class={HOSTILE: 1.0})
    test._print(result, {HOSTILE: HOSTILE}, Path(HOSTILE))
    assert_safe(capsys.readouterr().out, f"not read: video {SHOWN}: {SHOWN}", f"  {SHOWN}", SHOWN)


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    from motionmae.commands.plan import print_plan

    config = load_config("vitb_k400")
    print_plan(config.model_copy(update={"name": HOSTILE}), None, 10_000)
    assert_safe(capsys.readouterr().out, f"{SHOWN}: estimate")


@pytest.fixture
def hostile_shards(tmp_path: Path) -> Path:
    """Shards of two classes with hostile names, one of them no text, and files that are skipped."""
    videos = tmp_path / "videos"
    content = write_video(tmp_path / "clip.mp4", draw_frames(8)).read_bytes()
    for name in (HOSTILE.replace("/", ""), "class \udcff"):
        (videos / name).mkdir(parents=True)
        (videos / name / f"{name}.mp4").write_bytes(content)
        (videos / name / f"{name}.txt").write_text("no video")
        (videos / name / f"damaged {name}.mp4").write_bytes(b"no video")
    return videos


def test_shards(hostile_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture, sheet = tmp_path / "out", tmp_path / "classes.png", tmp_path / "sheet.png"
    assert make_shards(["folder", "--videos", str(hostile_shards), "--out", str(out), "--workers", "1"]) == 0
    assert stats([str(out), "--picture", str(picture)]) == 0
    assert preview([str(out), "--out", str(sheet)]) == 0
    assert cv2.imread(str(sheet)) is not None
    next(out.glob("*.tar")).write_bytes(b"")
    assert verify([str(out)]) == 1
    captured = capsys.readouterr()
    name = printable(HOSTILE.replace("/", ""))
    assert_safe(captured.out + captured.err, f"{name}.txt", "class \\udcff.txt")


@pytest.mark.filterwarnings("error")
def test_the_confusion_matrix(tmp_path: Path) -> None:
    names = (HOSTILE, "$", "$x$ 你")
    draw_confusion(tmp_path / "confusion.png", np.eye(3, dtype=np.int64), names, f"{HOSTILE} $\\frac{{$")
    assert cv2.imread(str(tmp_path / "confusion.png")) is not None


def test_findings_of_the_checks_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    figures: dict[str, object] = {"gpu": HOSTILE, "notes": [HOSTILE]}
    result = CheckResult(
        name="environment", verdict=Verdict.FAILED, figures=figures, problem=HOSTILE, not_run=(HOSTILE,)
    )
    gpu._report(result)
    gpu._show([result], Setting(device="cuda", quick=True, folder=Path()))
    assert_safe(capsys.readouterr().out, SHOWN)


def test_every_module_that_prints_tables_is_tried_here() -> None:
    """A new table needs a test here, or a table with text of its own alone needs a place in ``own``."""
    own = {"motionmae/commands/doctor/data.py", "motionmae/planning/goodput_report.py", "slurm/demo.py"}
    tried = {f"motionmae/commands/{name}.py" for name in ("checkpoints", "davis", "plan", "predict", "report", "test")}
    tried |= {
        "data_tools/stats/__init__.py",
        "monitoring/watch.py",
        "motionmae/commands/doctor/gpu.py",
        "slurm/run_table.py",
    }
    found = set()
    for package in ("motionmae", "data_tools", "monitoring", "slurm"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module == "motionmae.screen":
                    found |= {path.relative_to(ROOT).as_posix() for name in node.names if name.name == "Table"}
    assert found == own | tried

"""`motionmae runs` as a terminal and as a script see it. tests/slurm_lab asks a real Slurm about the jobs."""

import json
import time
from pathlib import Path

import pytest

from motionmae.__main__ import main
from motionmae.runs.history import RunState
from motionmae.runs.summary import RunSummary
from slurm import run_table
from slurm.job_state import JobRecord
from slurm.run_table import runs_in, table
from tests.runs.test_summary import TRAINING, event, write


def now_is(rows: tuple[dict, ...], ends: tuple[dict, ...] = ()) -> list[dict]:
    shift = time.time() - 1_800_000_000.0
    return [{**row, "time": row["time"] + shift} for row in (*rows, *ends)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write(tmp_path / "runs/trains", *now_is(TRAINING))
    write(tmp_path / "runs/mine", *now_is(TRAINING, (event("stop", 50, reason="stopped"),)))
    failed = event("stop", 50, reason="crashed", error="ValueError: \x1b[31m[red]boom")
    write(tmp_path / "runs/sweep/lr1", *now_is(TRAINING, (failed,)))
    return tmp_path / "runs"


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_the_table_fits_the_terminal(width: int, runs: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["runs", str(runs)]) == 0
    shown = capfd.readouterr().out
    lines = shown.splitlines()[:-1]  # the last one, with a command to copy, stays whole
    assert max(map(len, lines)) <= width
    first, *rest = (line for line in lines[1:] if line.strip())
    assert first.split()[:4] == ["trains", "training", "50/1,000", "5%"]
    assert ("31 min 40 s" in first) == (width >= 80)
    assert any("stopped" in line and "mine" in line for line in rest)
    assert "\x1b[31m" not in shown
    assert r"\x1b[31m[red]" in "".join(shown.split())
    assert ("2 s/step" in first) == (width >= 120)
    assert f"`motionmae report {runs}/sweep/lr1`" in shown


def test_a_script_reads_json(runs: Path, tmp_path: Path, capfd):
    assert main(["runs", str(runs), "--state", "failed", "--state", "stopped", "--json", "-"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert {run["name"]: run["state"] for run in found} == {"mine": "stopped", "sweep/lr1": "failed"}
    assert found[0].keys() >= {"step", "total_steps", "loss", "step_seconds", "eta_seconds", "hosts", "fault"}
    file = tmp_path / "table.json"
    for _ in range(2):  # its own file is replaced
        assert main(["runs", str(runs), "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())) == 3


def test_what_is_wrong_is_one_sentence(runs: Path, tmp_path: Path, capfd):
    for words in (["nowhere"], [str(runs), "--every", "0"], [str(runs), "--watch", "--json", "-"]):
        assert main(["runs", *words]) == 2
        assert capfd.readouterr().err.startswith("error: ")
    assert main(["runs", str(tmp_path / "runs/mine"), "--state", "failed"]) == 0
    assert "holds no failed run" in capfd.readouterr().out


def test_without_slurm_the_files_decide(runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("trains", "mine"):
        JobRecord("slurm", "4711", "log", "code", 1.0).write(runs / name)
    (runs / "sweep/lr1/job.json").write_text("{")
    states = {run.name: run.state.value for run in runs_in(runs)}
    assert states == {"trains": "training", "mine": "stopped", "sweep/lr1": "failed"}


def summary(name: str, state: str, **values: object) -> RunSummary:
    return RunSummary(name, f"/runs/{name}", RunState(state), **values)  # type: ignore[arg-type]


def cells(*runs: RunSummary, width: int = 200, now: float = 1000.0) -> list[list[str]]:
    """The cells of the table, row by row."""
    drawn = table(runs, width, now)
    columns = [[str(getattr(cell, "plain", cell)) for cell in column.cells] for column in drawn.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_a_row_says_where_a_run_stands() -> None:
    full = summary(
        "a", "training", step=1234, total_steps=5000, loss=0.123456, step_seconds=2.3456, eta_seconds=249.0,
        hosts=("n1", "n2", "n3"), last_sign=940.0, fault="save failed", fault_time=400.0,
    )  # fmt: skip
    empty = summary("b", "silent", note="cannot be read", fault="x", fault_time=1.0)
    assert cells(full, empty) == [
        ["a", "training", "1,234/5,000  25%", "0.1235", "4 min 09 s", "2.35 s/step", "1 min 00 s ago", "n1 +2",
         "save failed (10 min 00 s ago)"],
        ["b", "silent", "-", "-", "-", "-", "-", "-", "cannot be read"],
    ]  # fmt: skip
    assert cells(summary("c", "training", step=9, hosts=("n1",)))[0][2:] == [
        "9", "-", "-", "-", "-", "n1", "",
    ]  # fmt: skip
    later = summary("d", "finished", step=12, total_steps=10, last_sign=1010.0)
    assert cells(later)[0][2] == "12/10 100%"
    assert cells(later)[0][6] == "0 s ago"  # clocks of nodes differ


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (79, ["run", "state", "step", "last fault"]),
        (80, ["run", "state", "step", "loss", "left", "last fault"]),
        (119, ["run", "state", "step", "loss", "left", "last fault"]),
        (120, ["run", "state", "step", "loss", "left", "pace", "last sign", "node", "last fault"]),
    ],
)
def test_a_narrow_terminal_has_fewer_columns(width: int, headings: list[str]) -> None:
    drawn = table([summary("a", "training")], width, 0.0)
    assert [str(column.header) for column in drawn.columns] == headings
    assert table([], 199, 0.0).expand
    assert not table([], 200, 0.0).expand


def test_a_long_fault_is_cut() -> None:
    assert cells(summary("a", "failed", fault="x" * 100))[0][-1] == "x" * 100
    assert cells(summary("a", "failed", fault="x" * 101))[0][-1] == "x" * 100 + "..."


@pytest.mark.parametrize(
    ("state", "queue", "expected"),
    [
        ("training", {"7": "None"}, ("training", "7", "", "")),
        ("training", {}, ("failed", "", "", "job 7 has left Slurm's queue without a message of the run")),
        ("starting", {}, ("failed", "", "", "job 7 has left Slurm's queue without a message of the run")),
        ("silent", {}, ("failed", "", "", "job 7 has left Slurm's queue without a message of the run")),
        ("queued", {"7": "Resources"}, ("queued", "7", "waits: Resources", "")),
        ("requeued", {"7": "BeginTime"}, ("requeued", "7", "waits: BeginTime", "")),
        ("training", {"7": "Resources"}, ("training", "7", "", "")),
        ("preempted", {}, ("stopped", "", "job 7 has left Slurm's queue", "")),
        ("queued", {}, ("stopped", "", "job 7 has left Slurm's queue", "")),
        ("training", None, ("training", "", "", "")),  # Slurm does not answer
        ("finished", {}, ("finished", "", "", "")),  # it is not asked
    ],
)
def test_slurm_s_queue_corrects_the_state(
    state: str, queue: dict[str, str] | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def queued(job_ids: list[str]) -> dict[str, str] | None:
        asked.append(list(job_ids))
        return queue

    monkeypatch.setattr(run_table, "summarise_runs", lambda *_: [summary("a", state, eta_seconds=5.0, last_sign=3.0)])
    monkeypatch.setattr(run_table, "queued_jobs", queued)
    monkeypatch.setattr(JobRecord, "read", staticmethod(lambda _: JobRecord("slurm", "7", "log", "code", 1.0)))
    (found,) = runs_in(Path("/runs"))
    assert (found.state.value, found.job, found.note, found.fault) == expected
    assert asked == ([] if state == "finished" else [["7"]])
    if expected[0] == "failed":
        assert (found.eta_seconds, found.fault_time) == (None, 3.0)
    assert runs_in(Path("/runs"), [expected[0]]) == [found]
    assert runs_in(Path("/runs"), ["failed" if expected[0] == "queued" else "queued"]) == []


def test_a_waiting_run_with_a_fault_shows_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    run = summary("a", "requeued", fault="a rank was killed")
    record = JobRecord("slurm", "7", "log", "code", 1.0)
    assert run_table._with_job(run, record, {"7": "BeginTime"}).note == ""
    local = JobRecord("local", "7", "log", "code", 1.0)
    assert run_table._with_job(run, local, {}) is run
    assert run_table._with_job(run, None, {}) is run


def test_failed_runs_are_pointed_at(capsys: pytest.CaptureFixture[str]) -> None:
    run_table._print_notes([summary("a", "training"), summary("b", "failed"), summary("c", "failed")])
    assert capsys.readouterr().out.startswith("2 failed: `motionmae report /runs/b` shows the faults")
    run_table._print_notes([summary("a", "training")])
    assert capsys.readouterr().out == ""


def test_an_interval_of_the_watch_is_a_time(runs: Path, capfd):
    for words in (["--every", "nan"], ["--every", "-1"], ["--every", "1e30"]):
        assert main(["runs", str(runs), *words]) == 2
        assert "--every must be a positive number of seconds" in capfd.readouterr().err

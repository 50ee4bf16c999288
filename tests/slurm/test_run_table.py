"""`motionmae runs` as a terminal and as a script see it. tests/slurm_lab asks a real Slurm about the jobs."""

import json
import time
from pathlib import Path

import pytest

from motionmae.__main__ import main
from slurm.job_state import JobRecord
from slurm.run_table import runs_in
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

"""Training runs on the lab, submitted as a person submits them."""

import subprocess
import sys
from pathlib import Path

import pytest

from slurm.record import JobRecord
from tests.slurm import tiny
from tests.slurm_lab.lab import GRACE_SECONDS, Lab
from tests.training.launch import wait_until
from tests.training.shards import make_shards

ENDS = ("COMPLETED", "FAILED", "CANCELLED")
SUBMIT = Path(__file__).resolve().parents[2] / "slurm/submit.py"
FLAGS = ["--nodes", "2", "--ranks-per-node", "1", "--time", "60", "--partition", "low"]


def _command(tmp_path: Path) -> list[str]:
    shards = make_shards(tmp_path / "shards", samples=8)
    return [sys.executable, str(SUBMIT), "--config", "demo", *FLAGS, *tiny.overrides(shards)]


def _submit(lab: Lab, command: list[str], tmp_path: Path) -> tuple[Path, JobRecord]:
    submitted = lab.run(*command, cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    run = tmp_path / "runs/demo"
    record = JobRecord.read(run)
    assert record is not None
    assert f"job        {record.job_id} (slurm)" in submitted.stdout
    return run, record


def _wait_for_step(run: Path, step: int) -> None:
    wait_until(lambda: any(row["step"] == step for row in tiny.rows(run)), f"step {step}", 120)


def _take_the_nodes(lab: Lab) -> str:
    """Submit a job that preempts everything; returns its id."""
    what = ["-p", "high", f"-N{lab.nodes}", "--exclusive", "-o", "/dev/null", "--wrap", "srun sleep 1"]
    return lab.run("sbatch", "--parsable", *what).stdout.strip()


def _finish(lab: Lab, run: Path, record: JobRecord, restarts: int) -> list[object]:
    """Assert that the run finishes without a step lost or taken twice; returns how the earlier incarnations ended."""
    state = lab.wait_for_job(record.job_id, ENDS, seconds=150)
    assert state == "COMPLETED", Path(record.log).read_text()[-3000:]
    assert [row["step"] for row in tiny.rows(run)] == list(range(1, tiny.STEPS + 1))
    ends = [row["outcome"] for row in tiny.rows(run, "events.jsonl") if row["kind"] == "preemption"]
    assert lab.job(record.job_id)["Restarts"] == str(restarts)
    assert len({row["incarnation"] for row in tiny.rows(run)}) == len(ends) + 1
    return ends


@pytest.mark.long
def test_a_run_survives_preemption_and_requeue_without_losing_a_step(lab: Lab, tmp_path: Path) -> None:
    command = _command(tmp_path)
    run, record = _submit(lab, command, tmp_path)
    twice = lab.run(*command, cwd=tmp_path)
    assert twice.returncode == 2
    assert f"is under way as slurm job {record.job_id}" in twice.stderr
    follower = subprocess.Popen(
        lab.on_head(*command, "--follow"), env=lab.environment(), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )

    _wait_for_step(run, 5)
    _take_the_nodes(lab)
    _wait_for_step(run, 25)
    lab.run("scontrol", "requeue", record.job_id)  # sends SIGTERM and no user signal
    assert _finish(lab, run, record, restarts=2) == ["REQUEUE", "TERMINATED"]

    shown, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    for text in (
        f"following job {record.job_id}; nothing new is submitted",
        "resumes at step",
        "requeued 1 x",
        f"step {tiny.STEPS}/{tiny.STEPS}",
        f"-- job {record.job_id}: COMPLETED",
    ):
        assert text in shown


@pytest.mark.long
@pytest.mark.usefixtures("lab")  # for its verdict on whether this machine can hold one
def test_a_run_survives_a_preemption_that_sends_no_user_signal(tmp_path: Path) -> None:
    with Lab(nodes=2, user_signal=False) as plain:
        run, record = _submit(plain, _command(tmp_path), tmp_path)
        _wait_for_step(run, 5)
        taker = _take_the_nodes(plain)
        plain.wait_for_job(taker, ("COMPLETED",), seconds=GRACE_SECONDS)  # the nodes are free before the grace ends
        assert _finish(plain, run, record, restarts=1) == ["TERMINATED"]


@pytest.mark.long
def test_a_cancelled_run_saves_stays_away_and_resumes(lab: Lab, tmp_path: Path) -> None:
    command = _command(tmp_path)
    run, record = _submit(lab, command, tmp_path)
    _wait_for_step(run, 5)
    lab.run("scancel", record.job_id)
    assert lab.wait_for_job(record.job_id, ENDS, seconds=60) == "CANCELLED"
    run, again = _submit(lab, command, tmp_path)
    assert again.job_id != record.job_id
    assert _finish(lab, run, again, restarts=0) == ["TERMINATED"]

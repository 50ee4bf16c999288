"""Training runs on the lab, submitted as a person submits them."""

import subprocess
import sys
from pathlib import Path

import pytest

from slurm.record import JobRecord
from tests.slurm import tiny
from tests.slurm_lab.lab import Lab
from tests.training.launch import wait_until
from tests.training.shards import make_shards

SUBMIT = Path(__file__).resolve().parents[2] / "slurm/submit.py"
FLAGS = ["--nodes", "2", "--ranks-per-node", "1", "--time", "60", "--partition", "low"]


def _wait_for_step(run: Path, step: int) -> None:
    wait_until(lambda: any(row["step"] == step for row in tiny.rows(run)), f"step {step}", 120)


def _log(run: Path) -> str:
    record = JobRecord.read(run)
    return Path(record.log).read_text()[-3000:] if record else "no job.json"


@pytest.mark.long
def test_a_run_survives_preemption_and_requeue_without_losing_a_step(lab: Lab, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", samples=8)
    command = [sys.executable, str(SUBMIT), "--config", "demo", *FLAGS, *tiny.overrides(shards)]
    submitted = lab.run(*command, cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    run = tmp_path / "runs/demo"
    record = JobRecord.read(run)
    assert record is not None
    assert f"job        {record.job_id} (slurm)" in submitted.stdout

    twice = lab.run(*command, cwd=tmp_path)
    assert twice.returncode == 2
    assert f"is under way as slurm job {record.job_id}" in twice.stderr

    follower = subprocess.Popen(
        lab.on_head(*command, "--follow"), env=lab.environment(), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    _wait_for_step(run, 5)
    lab.run(
        "sbatch", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "srun sleep 1"
    )  # takes its nodes
    _wait_for_step(run, 25)
    lab.run("scontrol", "requeue", record.job_id)  # SIGTERM and no user signal: the run saves, Slurm requeues
    state = lab.wait_for_job(record.job_id, ("COMPLETED", "FAILED", "CANCELLED"), seconds=120)
    assert state == "COMPLETED", _log(run)

    assert [row["step"] for row in tiny.rows(run)] == list(range(1, tiny.STEPS + 1))
    assert len({row["incarnation"] for row in tiny.rows(run)}) == 3
    assert lab.job(record.job_id)["Restarts"] == "2"
    preempted = [row["outcome"] for row in tiny.rows(run, "events.jsonl") if row["kind"] == "preemption"]
    assert preempted == ["REQUEUE", "TERMINATED"]

    shown, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert f"following job {record.job_id}; nothing new is submitted" in shown
    assert "resumes at step" in shown
    assert "requeued 1 x" in shown
    assert f"step {tiny.STEPS}/{tiny.STEPS}" in shown
    assert f"-- job {record.job_id}: COMPLETED" in shown

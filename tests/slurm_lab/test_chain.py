"""Runs on a site that does not requeue: the next job of the chain continues them."""

import subprocess
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from tests.slurm_lab import faults
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import NO_STANDBY, RATE, STEPS, RunResult, TrainingRun

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("lab")]  # the fixture skips if this machine cannot run a lab


def _preempted_twice(folder: Path, shards: Path) -> tuple[TrainingRun, dict[str, str]]:
    """Killed at once by a preemption, twice, while ``--follow`` watches."""
    with Lab(nodes=2, rate=RATE, preempt_mode="CANCEL", grace_seconds=0) as lab:
        run = TrainingRun(lab, folder, shards, "--nodes", "2", "--chain", "1", NO_STANDBY)
        printed = {"submit": run.submit()}
        follower = subprocess.Popen(
            lab.on_head(*run.command, "--follow"), env=lab.environment(), cwd=folder, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2):
            run.wait_for_steps(7)
            faults.strike(run, faults.preempt, "")
        run.finish()
        jobs = lab.run("scontrol", "show", "job", "-o").stdout.splitlines()
        own = [
            dict(word.split("=", 1) for word in job.split() if "=" in word) for job in jobs if "JobName=demo-" in job
        ]
        printed["states"] = " ".join(job["JobState"] for job in sorted(own, key=lambda job: int(job["JobId"])))
        printed["follow"], _ = follower.communicate(timeout=300)
    return run, printed


def test_a_run_preempted_twice_under_cancel_finishes_by_itself(
    tmp_path: Path, shards: Path, undisturbed: Future[RunResult]
) -> None:
    run, printed = _preempted_twice(tmp_path, shards)
    tensors, reference = run.tensors(), undisturbed.result()
    assert run.losses() == reference.losses
    assert tensors.keys() == reference.tensors.keys()
    assert all(np.array_equal(tensors[key], value) for key, value in reference.tensors.items())
    assert len(run.attempts() - {""}) == 3
    assert "job        1 (slurm), then 2\n" in printed["submit"]
    assert printed["states"] == "PREEMPTED PREEMPTED COMPLETED CANCELLED"  # the last had nothing to do
    follow = printed["follow"]
    assert follow.count("resumes at step") == 2
    assert follow.splitlines()[-1].endswith(": COMPLETED (node[1-2])")


def test_cancelling_a_run_cancels_its_chain(tmp_path: Path, shards: Path) -> None:
    with Lab(nodes=2, preempt_mode="CANCEL") as lab:
        run = TrainingRun(lab, tmp_path, shards, "--nodes", "2", "--chain", "2", NO_STANDBY, steps=20 * STEPS)
        run.submit()
        run.wait_for_steps(1)
        assert lab.run("scancel", "1").returncode == 0
        states = [lab.wait_for_job(job_id, ("CANCELLED",), 60) for job_id in ("1", "2", "3")]
        assert states == ["CANCELLED"] * 3
        time.sleep(5)
        assert len(run.attempts() - {""}) == 1
        started = lab.run("scontrol", "show", "job", "-o").stdout.count("JobState=RUNNING")
        assert started == 0

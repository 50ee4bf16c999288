"""Excluded nodes never starve a job, on a real Slurm with short steps."""

import sys
from pathlib import Path

import pytest

from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from slurm.attempt_log import AttemptLog
from slurm.scontrol import expand_nodes
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.steps import ROOT

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("lab")]  # the fixture skips if this machine cannot run a lab


def _fail(run: Path, *nodes: str) -> None:
    """Let nodes fail the pre-flight check of a run, the first the longest ago."""
    run.mkdir()
    for node in nodes:
        AttemptLog(run).log_failure(Attempt(job="99"), EndReason.BAD_NODE, 0, node)


def _submit(lab: Lab, run: Path, step: str) -> str:
    """Submit a job on two nodes and return its ID."""
    (run / "step").write_text(step)
    command = f"exec {sys.executable} -m slurm.batch.supervisor {run} -- srun -- bash {run}/step"
    (run / "script").write_text(f"#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --no-kill\ncd {ROOT}\n{command}\n")
    options = ["--requeue", "--open-mode=append", "--time=60", "-o", f"{run}/out"]
    return lab.run("sbatch", "--parsable", *options, str(run / "script")).stdout.strip()


def test_a_job_starts_on_an_excluded_node_when_others_are_lost_while_it_waits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _fail(run, "node1")
    with Lab(nodes=4) as lab:
        job_id = _submit(lab, run, "sleep 600")
        lab.wait_until(lambda: lab.job(job_id)["ExcNodeList"] == "node1", 60)  # the job was requeued without it
        for node in ("node2", "node3"):
            lab.unplug(node)
        lab.wait_until(
            lambda: (
                lab.job(job_id)["JobState"] == "RUNNING"
                and set(expand_nodes(lab.job(job_id)["NodeList"])) == {"node1", "node4"}
            ),
            240,
        )
        assert lab.job(job_id)["ExcNodeList"] == "(null)"


def test_a_job_starts_with_three_of_four_nodes_excluded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _fail(run, "node2", "node1", "node3")
    with Lab(nodes=4) as lab:
        job_id = _submit(lab, run, "true")
        lab.wait_for_job(job_id, ("COMPLETED",), 120)
        assert lab.job(job_id)["ExcNodeList"] in ("node[1,3]", "node1,node3")  # node2 failed the longest ago
        assert lab.job(job_id)["NodeList"] == "node[2,4]"
        assert "review" not in lab.run("squeue", "-h", "-o", "%j").stdout  # it went with the job

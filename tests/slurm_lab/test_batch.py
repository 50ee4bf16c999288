"""What the batch script makes of each end of a job step, on a real Slurm."""

from pathlib import Path

import pytest

from slurm.attempt_log import Attempts
from tests.slurm.tiny import rows
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import PATIENCE
from tests.slurm_lab.steps import CASES

ENDS = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")


@pytest.mark.long
def test_a_job_is_tried_again_when_that_can_help_and_never_on_a_bad_node(
    lab: Lab, step_jobs: dict[str, tuple[Path, str]]
) -> None:
    for name, case in CASES.items():
        run, job_id = step_jobs[name]
        state = lab.wait_for_job(job_id, ENDS, PATIENCE)
        job, printed = lab.job(job_id), (run / "out").read_text()
        assert (state, job["ExitCode"], job["Restarts"]) == (case.state, case.status, case.restarts), printed
        failures = [row for row in rows(run, "events.jsonl") if row["kind"] == "failure"]
        assert tuple(row["reason"] for row in failures) == case.reasons
        if case.state == "FAILED" and case.reasons:
            assert "not tried again; mend the cause" in printed
        if name == "bad_node":
            (node,) = Attempts(run).excluded()
            assert failures[0]["node"] == job["ExcNodeList"] == node
            assert job["NodeList"] != node
            assert f"a node failed its pre-flight on {node}: queued again" in printed

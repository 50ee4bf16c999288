"""Decisions of the requeue policy for each end of a job step, on a real Slurm."""

from pathlib import Path

import pytest

from slurm.attempt_log import AttemptLog
from tests.slurm.tiny import rows
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import TIMEOUT
from tests.slurm_lab.steps import CASES

ENDS = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")


@pytest.mark.long
def test_a_job_is_tried_again_when_that_can_help_and_never_on_a_bad_node(
    lab: Lab, step_jobs: dict[str, tuple[Path, str]]
) -> None:
    for name, case in CASES.items():
        run, job_id = step_jobs[name]
        state = lab.wait_for_job(job_id, ENDS, TIMEOUT)
        job, printed = lab.job(job_id), (run / "out").read_text()
        assert (state, job["ExitCode"], job["Restarts"]) == (case.state, case.status, case.restarts), printed
        failures = [row for row in rows(run, "events.jsonl") if row["kind"] == "failure"]
        assert tuple(row["reason"] for row in failures) == case.reasons
        if case.state == "FAILED" and case.reasons:
            assert "the job is not requeued; fix the cause" in printed
        if name == "bad_node":
            (node,) = AttemptLog(run).excluded_nodes()
            assert failures[0]["node"] == job["ExcNodeList"] == node
            assert job["NodeList"] != node
            assert f"(node {node}): the job is requeued" in printed

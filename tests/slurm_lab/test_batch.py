"""What the batch script makes of each end of a job step, on a real Slurm with steps that take no time."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.attempts import Attempts
from slurm.ends import Cause
from tests.slurm.tiny import rows
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.runs import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
ENDS = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
_ONCE = '[ "$SLURM_RESTART_COUNT" ] && exit 0; '


@dataclass(frozen=True)
class Case:
    """A step and what becomes of its job."""

    step: str
    state: str
    status: str
    restarts: str
    causes: tuple[Cause, ...]
    retries: int = 5
    minutes: int = 60


CASES = {
    "user_error": Case("exit 2", "FAILED", "2:0", "0", ()),
    "stopped_by_file": Case("exit 81", "FAILED", "81:0", "0", ()),
    "crash": Case("exit 1", "FAILED", "1:0", "1", (Cause.CRASHED, Cause.CRASHED)),
    "lost_peers": Case(_ONCE + "exit 76", "COMPLETED", "0:0", "1", (Cause.LOST_PEERS,)),
    "hung": Case("exit 79", "FAILED", "79:0", "0", (Cause.HUNG,), retries=0),
    "killed": Case(_ONCE + "kill -9 $$", "COMPLETED", "0:0", "1", (Cause.KILLED,)),
    "bad_node": Case(_ONCE + "exit 77", "COMPLETED", "0:0", "1", (Cause.BAD_NODE,)),
    "stray_signal": Case(_ONCE + "exit 143", "COMPLETED", "0:0", "1", (Cause.STRAY_SIGNAL,)),
    "hung_at_the_limit": Case(
        _ONCE + 'trap "" TERM; sleep 300', "COMPLETED", "0:0", "1", (Cause.TIME_LIMIT,), minutes=1
    ),
}


@pytest.mark.long
def test_a_job_is_tried_again_when_that_can_help_and_never_on_a_bad_node(lab: Lab, tmp_path: Path) -> None:
    jobs = {name: _submit(lab, tmp_path / name, case) for name, case in CASES.items()}
    for name, case in CASES.items():
        run, job_id = tmp_path / name, jobs[name]
        state = lab.wait_for_job(job_id, ENDS, PATIENCE)
        job, printed = lab.job(job_id), (run / "out").read_text()
        assert (state, job["ExitCode"], job["Restarts"]) == (case.state, case.status, case.restarts), printed
        failures = [row for row in rows(run, "events.jsonl") if row["kind"] == "failure"]
        assert tuple(row["cause"] for row in failures) == tuple(cause.value for cause in case.causes)
        if case.state == "FAILED" and case.causes:
            assert "not tried again; mend the cause" in printed
        if name == "bad_node":
            (node,) = Attempts(run).excluded()
            assert failures[0]["node"] == job["ExcNodeList"] == node
            assert job["NodeList"] != node
            assert f"a node failed its pre-flight on {node}: queued again" in printed


def _submit(lab: Lab, run: Path, case: Case) -> str:
    run.mkdir()
    (run / "step").write_text(case.step)
    batch = f"exec {sys.executable} -m slurm.batch {run} {case.retries} srun --kill-on-bad-exit=1 bash {run}/step"
    (run / "script").write_text(f"#!/bin/bash\ncd {ROOT}\n{batch}\n")
    options = ["--requeue", "--open-mode=append", f"--time={case.minutes}", "-o", f"{run}/out"]
    return lab.run("sbatch", "--parsable", *options, str(run / "script")).stdout.strip()

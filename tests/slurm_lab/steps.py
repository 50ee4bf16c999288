"""Jobs with short steps that end in every possible way, to test the requeue policy."""

import sys
from dataclasses import dataclass
from pathlib import Path

from motionmae.runs.end_reason import EndReason
from tests.slurm_lab.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
_ONCE = '[ "$SLURM_RESTART_COUNT$MOTIONMAE_JOB_START" != 0 ] && exit 0; '


@dataclass(frozen=True)
class Case:
    """A step and the expected end of its job."""

    step: str
    state: str
    status: str
    restarts: str
    reasons: tuple[EndReason, ...]
    retries: int = 5
    minutes: int = 60


CASES = {
    "user_error": Case("exit 2", "FAILED", "2:0", "0", ()),
    "stopped_by_file": Case("exit 81", "FAILED", "81:0", "0", ()),
    "crash": Case("exit 1", "FAILED", "1:0", "0", (EndReason.CRASHED, EndReason.CRASHED)),
    "lost_peers": Case(_ONCE + "exit 76", "COMPLETED", "0:0", "0", (EndReason.LOST_PEERS,)),
    "hung": Case("exit 79", "FAILED", "79:0", "0", (EndReason.HUNG,), retries=0),
    "killed": Case(_ONCE + "kill -9 $$", "COMPLETED", "0:0", "0", (EndReason.KILLED,)),
    "bad_node": Case(_ONCE + "exit 77", "COMPLETED", "0:0", "1", (EndReason.BAD_NODE,)),
    "stray_signal": Case(_ONCE + "exit 143", "COMPLETED", "0:0", "0", (EndReason.TERMINATED,)),
    "hung_at_the_limit": Case(
        _ONCE + 'trap "" TERM; sleep 300', "COMPLETED", "0:0", "1", (EndReason.TIME_LIMIT,), minutes=1
    ),
}


def submit_case(lab: Lab, run: Path, case: Case) -> str:
    """Submit the job and return its ID."""
    run.mkdir()
    (run / "step").write_text(case.step)
    supervisor = f"{sys.executable} -m slurm.batch.supervisor {run} --max-retries={case.retries}"
    batch = f"exec {supervisor} -- srun --kill-on-bad-exit=1 -- bash {run}/step"
    (run / "script").write_text(f"#!/bin/bash\ncd {ROOT}\n{batch}\n")
    options = ["--requeue", "--open-mode=append", f"--time={case.minutes}", "-o", f"{run}/out"]
    return lab.run("sbatch", "--parsable", *options, str(run / "script")).stdout.strip()

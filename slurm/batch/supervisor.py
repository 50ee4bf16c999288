"""Supervisor of a job: the batch script runs this module, which runs srun and asks the policy whether to retry."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import Attempt
from motionmae.text import LINES, say
from slurm import scontrol
from slurm.batch.requeue_policy import RequeuePolicy, log
from slurm.batch.step_failure import find_failure

STEP_IDS = 3
"""The attempts of a job cycle through this number of job step IDs."""


def main(argv: Sequence[str]) -> int:
    """Run the job step of ``RUN MAX_RETRIES srun ...`` and return the job's exit status."""
    run, max_retries, *command = argv
    Path(run).mkdir(parents=True, exist_ok=True)
    attempt = Attempt(job=os.environ["SLURM_JOB_ID"], restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0))
    policy = RequeuePolicy(RunFolder(Path(run)), attempt, int(max_retries))
    policy.log_lost_nodes()
    nodes = _parse_node_list(os.environ["SLURM_JOB_NODELIST"])
    if bad := sorted(set(nodes) & set(policy.nodes_to_avoid())):
        log(f"this run failed before on {', '.join(bad)}: the job is requeued without these nodes")
        return 0 if policy.requeue() else EndReason.LOST_PEERS.exit_code
    policy.attempts.log_start(attempt, nodes)
    burn_step_ids(attempt.restart)
    status, lines = run_step(command, policy)
    if status == 0:
        return 0
    failure = find_failure(lines)
    policy.decide(failure)
    return failure.status


def burn_step_ids(restart: int) -> None:
    """Start 0 to 2 empty job steps. The ID of the training step then differs from the previous attempt's ID.

    Slurm 22.05 may deliver a late signal to a step with the ID of an old step. Two cases were seen: the srun of an old
    attempt on a node whose cable is plugged in again, and a busy controller that repeats an unanswered signal after a
    minute.
    """
    for _ in range(restart % STEP_IDS):
        scontrol.run_command("srun", "--nodes=1", "--ntasks=1", "--output=/dev/null", "true")


def run_step(command: Sequence[str], policy: RequeuePolicy) -> tuple[int, list[str]]:
    """Run srun and return its status and its messages on standard error.

    Slurm itself signals the ranks of the step. SIGTERM is the last chance to retry a job at its time limit: hanging
    ranks are killed together with this process.
    """
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as step:
        signal.signal(signal.SIGTERM, lambda *_: policy.decide_at_time_limit())
        assert step.stderr is not None
        lines = []
        for line in step.stderr:
            say(line, sys.stderr, keep=LINES, end="")
            lines.append(line.rstrip())
        status = step.wait()
    return 128 - status if status < 0 else status, lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Requeue policy: the batch script runs this module, which runs srun and then decides whether to retry the job.

Slurm itself requeues a job after a preemption or a node failure, and rank 0 requeues it after SIGUSR2. After any other
failure, for example a killed rank, Slurm would end the job for good. This module then asks Slurm to requeue it:

- never after a user error, a requested stop (``scancel``, the stop file), or when a newer attempt holds the lease;
- at once after a SIGTERM that neither ``scancel`` nor a preemption explains, because this attempt has saved
  (see :func:`burn_step_ids`);
- after any other failure at once, then after FIRST_PAUSE, then after pauses that grow by a factor of four, until more
  than `launch.max_retries` attempts have failed without a new checkpoint. A program error is retried once.

A requeued job avoids nodes that failed the pre-flight check and nodes on which the run failed twice, as long as enough
other nodes are up.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.slurm.slurm import _parse_node_list  # parses every form of Slurm's host lists

from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, Requeue
from motionmae.runs.events import Kind, append_row
from motionmae.runs.history import Attempt, RunHistory
from motionmae.text import LINES, say
from slurm import scontrol
from slurm.attempt_log import AttemptLog

STEP_IDS = 3
"""The attempts of a job cycle through this number of job step IDs."""
FIRST_PAUSE = 60
"""Seconds before the second retry."""
_DECISIVE = (EndReason.USER_ERROR, EndReason.STOPPED, EndReason.LEASE_LOST, EndReason.BAD_NODE, EndReason.NO_STORAGE)
"""Reasons that a rank reports about itself. They take precedence over failures that only report a lost rank."""
_OF_EXIT_CODE = {end.exit_code: end for end in (*_DECISIVE, EndReason.TERMINATED, EndReason.LOST_PEERS, EndReason.HUNG)}
_SIGNALS = ("Killed", "Segmentation fault", "Bus error", "Illegal instruction")
"""Signals for which the node is blamed. Terminated comes from srun, and Aborted from NCCL because of another rank."""
_TASK = re.compile(r"srun: error: (?P<nodes>\S+): tasks? [\d,\-]+: (?P<end>.+)")
_LAUNCH = re.compile(r"srun: error: Task launch for \S+ failed on node (?P<nodes>[^:\s]+)")


@dataclass(frozen=True)
class Failure:
    """Cause of a failed job step."""

    reason: EndReason
    node: str = ""  # the node at fault, if known
    status: int = 1  # exit status of the failed rank; 137 for a killed rank


class RequeuePolicy:
    """Policy for one attempt of a job: decides whether and on which nodes the job is retried."""

    def __init__(self, run: RunFolder, attempt: Attempt, max_retries: int) -> None:
        self.run, self.attempt, self.max_retries = run, attempt, max_retries
        self.attempts = AttemptLog(run.path)

    def decide(self, failure: Failure) -> None:
        """Retry a failed job, unless a retry cannot help, or the job was cancelled or is already requeued."""
        job = scontrol.show_job(self.attempt.job)
        if job is not None and (job.name != "RUNNING" or job.restarts != self.attempt.restart):
            return
        if failure.reason.requeue is not Requeue.NEVER:
            self.retry(failure)

    def decide_at_time_limit(self) -> None:
        """Retry a job that has reached its time limit, unless the job is already requeued."""
        job = scontrol.show_job(self.attempt.job)
        if job is not None and job.out_of_time and job.restarts == self.attempt.restart:
            self.retry(Failure(EndReason.TIME_LIMIT))

    def retry(self, failure: Failure) -> None:
        """Log a failure and requeue the job, unless the job has failed too often."""
        step = self.newest_step()
        self.attempts.log_failure(self.attempt, failure.reason, step, failure.node)
        count = self.attempts.failures_without_progress(self.attempt.job)
        once = failure.reason.requeue is Requeue.ONCE
        again = count <= (min(self.max_retries, 1) if once else self.max_retries)
        pause = FIRST_PAUSE * 4 ** (count - 2) if again and count > 1 else 0
        self.log_failure_event(step, failure, again, pause)
        cause = failure.reason.description + (f" (node {failure.node})" if failure.node else "")
        if again:
            log(f"{cause}: the job is requeued" + (f" in {pause} s" if pause else ""))
            self.requeue(pause)
        else:
            log(
                f"{cause}, failure {count} without a new checkpoint (launch.max_retries={self.max_retries}): "
                "the job is not requeued; fix the cause (see the log above) and submit the run again"
            )

    def requeue(self, pause: int = 0) -> bool:
        """Requeue the job after ``pause`` seconds and exclude bad nodes; False if Slurm refuses."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends SIGTERM at a requeue, before the update below
        job = scontrol.show_job(self.attempt.job)
        before = set(job.excluded if job else ())
        avoid = before - set(self.attempts.excluded_nodes()) | set(self.nodes_to_avoid())
        if not scontrol.requeue(self.attempt.job):
            log("Slurm refused to requeue the job: submit the run again")
            return False
        changes = {"StartTime": f"now+{pause}"} if pause else {}
        if avoid != before:
            changes["ExcNodeList"] = ",".join(sorted(avoid))
        if changes and not scontrol.update(self.attempt.job, changes):
            log("Slurm refused to change the queued job; the next attempt checks its nodes again")
        return True

    def nodes_to_avoid(self) -> dict[str, str]:
        """Return the nodes that the attempt log excludes; empty if too few other nodes of the partition are up."""
        excluded = self.attempts.excluded_nodes()
        others = set(scontrol.usable_nodes(os.environ["SLURM_JOB_PARTITION"])) - set(excluded)
        if excluded and len(others) < int(os.environ["SLURM_JOB_NUM_NODES"]):
            bad = ", ".join(excluded)
            log(f"this run failed before on {bad}, but only {len(others)} other nodes are up: {bad} is used again")
            return {}
        return excluded

    def log_lost_nodes(self) -> None:
        """Log the nodes of the previous attempt that are down. Slurm requeues the job without naming them."""
        last = self.attempts.last_start()
        if last is None or last[0].job != self.attempt.job:
            return
        attempt, nodes = last
        for node, reason in scontrol.down_nodes(nodes).items():
            if not self.attempts.has_failure(attempt, node):
                step = self.newest_step()
                log(f"node {node} of the previous attempt is down ({reason})")
                self.attempts.log_failure(attempt, EndReason.NODE_DOWN, step, node)
                self.log_failure_event(step, Failure(EndReason.NODE_DOWN, node), again=True, pause=0)

    def log_failure_event(self, step: int, failure: Failure, again: bool, pause: int) -> None:
        starts = RunHistory(self.run.path).of(Kind.START)  # metrics.jsonl is too long to read before Slurm's SIGKILL
        row = {"attempt": starts[-1]["attempt"] if starts else "", "kind": Kind.FAILURE.value, "step": step}
        row |= {"reason": failure.reason, "node": failure.node, "again": again, "pause": pause}
        row |= {"excluded": self.attempts.excluded_nodes(), "job": self.attempt.job, "restart": self.attempt.restart}
        append_row(self.run.events, **row)

    def newest_step(self) -> int:
        """Return the step of the newest committed checkpoint, 0 before the first."""
        complete = CheckpointStore(self.run.checkpoints).complete()
        return complete[-1].step if complete else 0


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


def find_failure(lines: Iterable[str]) -> Failure:
    """Return the cause of a failed job step according to srun's messages on standard error.

    srun exits with the highest status of all tasks. After the first failure, srun ends the other tasks, and their
    status 143 is higher than all other exit codes. The messages on standard error are in order and name the nodes::

        srun: error: node2: task 1: Killed
        srun: launch/slurm: _step_signal: Terminating StepId=7.0
        srun: error: node1: task 0: Exited with exit code 76
    """
    found = [failure for line in lines if (failure := _failure_in(line)) is not None]
    decisive = [failure for reason in _DECISIVE for failure in found if failure.reason is reason]
    return next(iter([*decisive, *found]), Failure(EndReason.NOT_STARTED))


def _failure_in(line: str) -> Failure | None:
    if (launch := _LAUNCH.match(line)) is not None:
        return Failure(EndReason.NOT_STARTED, launch["nodes"])
    if (task := _TASK.match(line)) is None:
        return None
    node = _parse_node_list(task["nodes"])[0]
    if status := re.fullmatch(r"Exited with exit code (\d+)", task["end"]):
        reason = _OF_EXIT_CODE.get(int(status[1]), EndReason.CRASHED)
        return Failure(reason, node if reason is EndReason.BAD_NODE else "", int(status[1]))
    return Failure(EndReason.KILLED, node if task["end"].startswith(_SIGNALS) else "", 128 + signal.SIGKILL)


def log(message: str) -> None:
    """Print to the log of rank 0, which is also the log of the batch script."""
    say(f"{time.strftime('%H:%M:%S')} slurm: {message}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

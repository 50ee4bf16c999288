"""Requeue policy: whether, when and on which nodes a failed job is tried again.

Slurm itself requeues a job after a preemption or a node failure, and rank 0 requeues it after SIGUSR2. After any other
failure, for example a killed rank, Slurm would end the job for good. This policy then asks Slurm to requeue it:

- never after a user error, a requested stop (``scancel``, the stop file), or when a newer attempt holds the lease;
- at once after a SIGTERM that neither ``scancel`` nor a preemption explains, because this attempt has saved
  (see :func:`slurm.batch.supervisor.burn_step_ids`);
- after any other failure at once, then after FIRST_PAUSE, then after pauses that grow by a factor of four, until more
  than `launch.max_retries` attempts have failed without a new checkpoint. A program error is retried once.

A requeued job avoids nodes that failed the pre-flight check and nodes on which the run failed twice, as long as enough
other nodes are up.
"""

import os
import signal
import time

from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, Requeue
from motionmae.runs.events import Kind, append_row
from motionmae.runs.history import Attempt, RunHistory
from motionmae.text import say
from slurm import scontrol
from slurm.attempt_log import AttemptLog
from slurm.batch.step_failure import Failure

FIRST_PAUSE = 60
"""Seconds before the second retry."""


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


def log(message: str) -> None:
    """Print to the log of rank 0, which is also the log of the batch script."""
    say(f"{time.strftime('%H:%M:%S')} slurm: {message}")

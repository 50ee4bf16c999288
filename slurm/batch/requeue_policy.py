"""Requeue policy: whether, when and on which nodes a failed attempt is tried again.

Slurm itself requeues a job after a preemption or a node failure, and rank 0 requeues it after SIGUSR2. After any other
failure, for example a killed rank, Slurm would end the job for good. This policy then asks Slurm to requeue it:

- never after a user error, a requested stop (``scancel``, the stop file), or when a newer attempt holds the lease;
- at once after a SIGTERM that neither ``scancel`` nor a preemption explains, because this attempt has saved
  (see :func:`slurm.batch.supervisor.burn_step_ids`);
- after any other failure at once, then after FIRST_PAUSE, then after pauses that grow by a factor of four, until more
  than `launch.max_retries` attempts have failed without a new checkpoint. A program error is retried once.

A requeued job avoids nodes that failed the pre-flight check and nodes on which the run failed twice, as long as enough
other nodes are up (:mod:`slurm.batch.excluded_nodes`).
"""

import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, Requeue
from motionmae.runs.events import Kind, append_row
from motionmae.runs.history import Attempt, RunHistory
from slurm import scontrol
from slurm.attempt_log import AttemptLog
from slurm.batch import excluded_nodes
from slurm.batch.batch_log import log
from slurm.batch.chain import Chain
from slurm.batch.node_choice import choose_nodes
from slurm.batch.step_failure import Failure
from slurm.scontrol import JobState

CONTROLLER_PAUSE = 2.0
"""Seconds between two questions to a controller that does not answer."""
REQUEUED_STATUS = 255
"""Exit status of a rank after submitit has asked Slurm to requeue the job."""
FIRST_PAUSE = 60
"""Seconds before the second retry."""


class RequeuePolicy:
    """Policy of a job between two requeues: decides whether and on which nodes a failed attempt is retried."""

    def __init__(self, run: RunFolder, attempt: Attempt, max_retries: int, signal_seconds: int = 0) -> None:
        self.run, self.attempt, self.max_retries, self.signal_seconds = run, attempt, max_retries, signal_seconds
        self.attempts = AttemptLog(run.path)
        self.chain = Chain(run, attempt.job)

    def begin(self, start: int, nodes: Sequence[str], launch: int, step_id: int) -> None:
        """Log the start of an attempt: its ``nodes``, the supervisor's number of its step, and Slurm's."""
        self.attempt = replace(self.attempt, start=start)
        self.attempts.log_start(self.attempt, nodes, launch, step_id)

    def decide(self, failure: Failure, lost: Collection[str] = (), counts: Sequence[int] = ()) -> list[str]:
        """Return the nodes on which the next attempt starts now; empty if the job ends or is requeued.

        Nothing is retried if a retry cannot help, or the job was cancelled or is already requeued. ``lost`` are nodes
        that do not answer, and ``counts`` the numbers of nodes on which the run can train.
        """
        job = scontrol.show_job(self.attempt.job)
        limit = time.monotonic() + scontrol.CONTROLLER_TIMEOUT
        while job is None and lost:  # this node may be the one that is cut off: it must not blame the others
            if time.monotonic() > limit:
                return []
            time.sleep(CONTROLLER_PAUSE)
            job = scontrol.show_job(self.attempt.job)
        if failure.status == REQUEUED_STATUS and self.is_running(job):  # Slurm is about to carry it out
            time.sleep(CONTROLLER_PAUSE)
            job = scontrol.show_job(self.attempt.job)
        if job is not None and not self.is_running(job):
            self.close_if_cancelled(job)
            return []
        if failure.reason is EndReason.PREEMPTED:  # rank 0 could not requeue the job
            self.requeue()
            return []
        if failure.reason.requeue is Requeue.NEVER:
            self.chain.close()
            return []
        return self.retry(failure, lambda: self.nodes_here(job, lost, counts))

    def is_running(self, job: JobState | None) -> bool:
        """Return whether the job still runs this attempt, and is neither cancelled nor requeued."""
        return job is not None and job.name == "RUNNING" and job.restarts == self.attempt.restart

    def close_if_cancelled(self, job: JobState) -> None:
        """End the chain of a job that a person cancelled."""
        if job.cancelled and job.restarts == self.attempt.restart:
            self.chain.close()

    def decide_at_time_limit(self) -> None:
        """Retry a job that has reached its time limit, unless the job is already requeued."""
        job = scontrol.show_job(self.attempt.job)
        if job is not None and job.out_of_time and job.restarts == self.attempt.restart:
            self.retry(Failure(EndReason.TIME_LIMIT))
        elif job is not None:
            self.close_if_cancelled(job)

    def retry(self, failure: Failure, nodes_here: Callable[[], list[str]] = list) -> list[str]:
        """Log a failure; return the nodes for a start inside the allocation, or requeue the job if it may try again."""
        step = self.newest_step()
        self.attempts.log_failure(self.attempt, failure.reason, step, failure.node)
        count = self.attempts.failures_without_progress(*self.chain.jobs)
        once = failure.reason.requeue is Requeue.ONCE
        again = count <= (min(self.max_retries, 1) if once else self.max_retries)
        pause = FIRST_PAUSE * 4 ** (count - 2) if again and count > 1 else 0
        nodes = nodes_here() if again and not pause else []
        self.log_failure_event(step, failure, again, pause, inside=bool(nodes))
        cause = failure.reason.description + (f" (node {failure.node})" if failure.node else "")
        if nodes:
            log(f"{cause}: the run starts again on {', '.join(nodes)}, inside this allocation")
        elif again:
            log(f"{cause}: the job is requeued" + (f" in {pause} s" if pause else ""))
            self.requeue(pause)
        else:
            log(
                f"{cause}, failure {count} without a new checkpoint (launch.max_retries={self.max_retries}): "
                "the job is not requeued; fix the cause (see the log above) and submit the run again"
            )
            self.chain.close()
        return nodes

    def nodes_here(self, job: JobState | None, lost: Collection[str], counts: Sequence[int]) -> list[str]:
        """Return the nodes of this allocation on which the run can start again; empty if the queue is better.

        The queue is better when the job is about to end, when too few nodes are left, or when the partition has nodes
        in place of those on which the run failed before.
        """
        if job is None or job.preempted or job.out_of_time or job.seconds_left < self.signal_seconds:
            return []
        held = scontrol.expand_nodes(job.detail)
        if job.batch_host not in held:  # Slurm has given up the node of this process
            return []
        down = {*lost, *scontrol.down_nodes(held)}
        up = [node for node in held if node not in down]
        failed = self.attempts.excluded_nodes()
        return choose_nodes(up, failed, counts) or choose_nodes(up, self.nodes_to_avoid(), counts)

    def requeue(self, pause: int = 0) -> bool:
        """Let the run go on after ``pause`` seconds, without bad nodes; False if it cannot.

        Slurm requeues the job. Where it refuses, the next job of the chain continues the run.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends SIGTERM at a requeue, before the update below
        run, job_id = self.run.path, self.attempt.job
        job = scontrol.show_job(job_id)
        wanted = self.nodes_to_avoid()
        if wanted and not excluded_nodes.arrange_review(run, job_id, max(pause, excluded_nodes.FIRST_REVIEW)):
            wanted = []
        start = {"StartTime": f"now+{pause}"} if pause else {}
        if not scontrol.requeue(job_id):
            exclude = {"ExcNodeList": ",".join(wanted)} if wanted else {}
            if link := self.chain.hand_over(start | exclude):
                log(f"job {link}, the next of the chain, continues the run")
            else:
                log("Slurm refused to requeue the job: submit the run again, with --chain 1 at such a site")
            return bool(link)
        changed = excluded_nodes.change_list(run, job_id, job or JobState(""), wanted)
        if start and not scontrol.update(job_id, start):
            changed = False
        if not changed:
            log("Slurm refused to change the queued job; the next attempt checks its nodes again")
        return True

    def nodes_to_avoid(self) -> list[str]:
        """Return the nodes on which this run failed, as far as Slurm could start the job without them."""
        return excluded_nodes.plan(self.run.path, self.attempt.job)

    def log_lost_nodes(self) -> None:
        """Log the nodes of the previous attempt that are down. Slurm requeues the job without naming them."""
        last = self.attempts.last_start()
        if last is None or last[0].job not in self.chain.jobs:
            return
        attempt, nodes = last
        for node, reason in scontrol.down_nodes(nodes).items():
            if not self.attempts.has_failure(attempt, node):
                step = self.newest_step()
                log(f"node {node} of the previous attempt is down ({reason})")
                self.attempts.log_failure(attempt, EndReason.NODE_DOWN, step, node)
                self.log_failure_event(step, Failure(EndReason.NODE_DOWN, node), again=True, pause=0)

    def log_failure_event(self, step: int, failure: Failure, again: bool, pause: int, inside: bool = False) -> None:
        starts = RunHistory(self.run.path).of(Kind.START)  # metrics.jsonl is too long to read before Slurm's SIGKILL
        row = {"attempt": starts[-1]["attempt"] if starts else "", "kind": Kind.FAILURE.value, "step": step}
        row |= {"reason": failure.reason, "node": failure.node, "again": again, "pause": pause, "inside": inside}
        row |= {"excluded": self.attempts.excluded_nodes(), "job": self.attempt.job, "restart": self.attempt.restart}
        append_row(self.run.events, **row)

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint or, if that is later, of the last memory copy that was resumed.

        0 before the first. Both are progress, which the next failure does not undo.
        """
        complete = CheckpointStore(self.run.checkpoints).complete()
        resumed = [row["step"] for row in RunHistory(self.run.path).of(Kind.RESUME) if row.get("source") == "memory"]
        return max(complete[-1].step if complete else 0, *resumed[-1:], 0)

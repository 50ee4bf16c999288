"""What the batch script runs on the job's first node: srun, and then the question whether the job is tried again.

Slurm queues a job again by itself after a preemption or the loss of a node, and rank 0 asks for it after SIGUSR2. But
a rank that dies, or loses the others, fails the job for good. So this asks Slurm to queue it again, nobody watching:

- a person's mistake, a stop that was asked for (``scancel``, the stop file), or a newer attempt: never;
- SIGTERM to a job that is neither cancelled nor preempted: always (see :func:`burn_step_ids`);
- anything else: at once the first time, then after :data:`FIRST_PAUSE` and each time four times as long, until there
  were more than `launch.max_retries` failures without a new checkpoint between them; an error in the program once;
- never again on a node that failed its pre-flight, or on which the run failed twice, while enough others are left.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.slurm.slurm import _parse_node_list

from motionmae.runs.attempt import Attempt
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason, Requeue
from motionmae.runs.events import EventLog, JsonLines, Kind, read_rows
from slurm import scontrol
from slurm.attempt_log import Attempts
from slurm.failure_cause import Failure, find_failure

STEP_NUMBERS = 3
"""The lives of a job take turns in so many numbers of their job step."""
FIRST_PAUSE = 60
"""Seconds before the second try of a failed attempt."""


@dataclass(frozen=True)
class Batch:
    """One life of the job."""

    run: RunFolder
    attempt: Attempt
    max_retries: int

    @property
    def attempts(self) -> Attempts:
        """The run's memory."""
        return Attempts(self.run.path)

    def newest_step(self) -> int:
        """Step of the newest committed checkpoint, 0 before the first."""
        complete = CheckpointStore(self.run.checkpoints).complete()
        return complete[-1].step if complete else 0


def main(words: Sequence[str]) -> int:
    """``RUN MAX_RETRIES srun ...``: run the step and return the job's exit status."""
    run, max_retries, *command = words
    Path(run).mkdir(parents=True, exist_ok=True)
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    batch = Batch(RunFolder(Path(run)), Attempt(job=os.environ["SLURM_JOB_ID"], restart=restart), int(max_retries))
    note_lost_nodes(batch)
    nodes = _parse_node_list(os.environ["SLURM_JOB_NODELIST"])
    if unwanted := sorted(set(nodes) & set(nodes_to_avoid(batch))):
        say(f"{', '.join(unwanted)} failed this run before: queued again without")
        return 0 if requeue(batch, 0) else EndReason.LOST_PEERS.exit_code
    batch.attempts.started(batch.attempt, nodes)
    burn_step_ids(restart)
    status, lines = run_step(batch, command)
    if status == 0:
        return 0
    failure = find_failure(lines)
    decide_requeue(batch, failure)
    return failure.status


def burn_step_ids(restart: int) -> None:
    """Let steps pass that do nothing, so that the real one has another number than in the life before.

    What is meant for the step of an older life may come late: its srun on a node whose cable is put back ends "its"
    step, and a controller under load sends a signal that was not answered again after a minute. Both ended the step of
    the new life, which had the same number, on Slurm 22.05.
    """
    for _ in range(restart % STEP_NUMBERS):
        scontrol.run_command("srun", "--nodes=1", "--ntasks=1", "--output=/dev/null", "true")


def run_step(batch: Batch, command: Sequence[str]) -> tuple[int, list[str]]:
    """Run srun to its end and return its status and messages.

    Slurm sends the step its signals by itself. SIGTERM is the last chance to act when time is up: ranks that hang are
    killed together with this process.
    """
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as step:
        signal.signal(signal.SIGTERM, lambda *_: decide_requeue_overtime(batch))
        assert step.stderr is not None
        lines = []
        for line in step.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            lines.append(line.rstrip())
        status = step.wait()
    return 128 - status if status < 0 else status, lines


def decide_requeue_overtime(batch: Batch) -> None:
    """Have the job tried again if it is out of time and nobody has asked for that yet."""
    job = scontrol.show(batch.attempt.job)
    if job is not None and job.out_of_time and job.restarts == batch.attempt.restart:
        retry(batch, Failure(EndReason.TIME_LIMIT))


def decide_requeue(batch: Batch, failure: Failure) -> None:
    """Decide what becomes of a job whose step failed."""
    job = scontrol.show(batch.attempt.job)
    if job is not None and (job.state != "RUNNING" or job.restarts != batch.attempt.restart):
        return  # cancelled; or queued again already: by rank 0, by Slurm, by an administrator
    if failure.reason.requeue is not Requeue.NEVER:
        retry(batch, failure)


def retry(batch: Batch, failure: Failure) -> None:
    """Note a failure, and have the job queued again unless there were too many."""
    attempts, step = batch.attempts, batch.newest_step()
    attempts.failed(batch.attempt, failure.reason, step, failure.node)
    count = attempts.failures_without_progress(batch.attempt.job)
    again = count <= (min(batch.max_retries, 1) if failure.reason.requeue is Requeue.ONCE else batch.max_retries)
    pause = FIRST_PAUSE * 4 ** (count - 2) if again and count > 1 else 0
    record(batch, step, failure, again, pause)
    where = f" on {failure.node}" if failure.node else ""
    if again:
        say(f"{failure.reason.description}{where}: queued again" + (f" in {pause} s" if pause else ""))
        requeue(batch, pause)
    else:
        say(
            f"{failure.reason.description}{where}, failure {count} without a new checkpoint (launch.max_retries="
            f"{batch.max_retries}): not tried again; mend the cause (see the log above) and submit again"
        )


def note_lost_nodes(batch: Batch) -> None:
    """After the loss of a node Slurm queues the job again by itself: find out which node it was, and note it."""
    last = batch.attempts.last_start()
    if last is None or last[0].job != batch.attempt.job:
        return
    attempt, nodes = last
    for node, reason in scontrol.down_nodes(nodes).items():
        if batch.attempts.knows(attempt, node):
            continue
        step = batch.newest_step()
        say(f"{node}, where this run was before, is down ({reason})")
        batch.attempts.failed(attempt, EndReason.NODE_DOWN, step, node)
        record(batch, step, Failure(EndReason.NODE_DOWN, node), again=True, pause=0)


def nodes_to_avoid(batch: Batch) -> dict[str, str]:
    """Nodes that the run's memory excludes, unless too few others would be left in the partition."""
    excluded = batch.attempts.excluded()
    others = set(scontrol.usable_nodes(os.environ["SLURM_JOB_PARTITION"])) - set(excluded)
    needed = int(os.environ["SLURM_JOB_NUM_NODES"])
    if excluded and len(others) < needed:
        say(f"{', '.join(excluded)} failed this run before, but only {len(others)} other nodes are up: used again")
        return {}
    return excluded


def requeue(batch: Batch, pause: int) -> bool:
    """Have Slurm queue it again, in ``pause`` seconds at the earliest and away from bad nodes; False if it refuses."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue sends it; the update below comes first
    job = scontrol.show(batch.attempt.job)
    before = set(job.excluded if job else ())
    avoid = before - set(batch.attempts.excluded()) | set(nodes_to_avoid(batch))
    if not scontrol.requeue(batch.attempt.job):
        say("Slurm did not take the request: submit the run again")
        return False
    changes = {"StartTime": f"now+{pause}"} if pause else {}
    if avoid != before:
        changes["ExcNodeList"] = ",".join(sorted(avoid))
    if changes and not scontrol.update(batch.attempt.job, changes):
        say("Slurm did not take the changes of the queued job; the next start looks at its nodes again")
    return True


def record(batch: Batch, step: int, failure: Failure, again: bool, pause: int) -> None:
    """Tell events.jsonl."""
    sink = JsonLines(batch.run.events, batch.run.metrics)
    starts = [row for row in read_rows(batch.run.events) if row["kind"] == Kind.START.value]
    log = EventLog(starts[-1]["attempt"] if starts else "", [sink])
    log.event(
        Kind.FAILURE,
        step,
        reason=failure.reason,
        node=failure.node,
        again=again,
        pause=pause,
        excluded=batch.attempts.excluded(),
        job=batch.attempt.job,
        restart=batch.attempt.restart,
    )
    log.close()


def say(sentence: str) -> None:
    """Print into the log of rank 0, which is the batch script's as well."""
    print(f"{time.strftime('%H:%M:%S')} slurm: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

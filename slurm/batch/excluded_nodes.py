"""Excluded nodes of a queued job, and the review of this list while the job waits.

A job avoids the nodes on which its run failed (:mod:`slurm.attempt_log`) as long as Slurm could start it on others.
Nodes may fail while the job waits, and then no process of the run is there to change the list. A list therefore always
comes with a *review*: a job of one task and one second, which may run on any node, also on an excluded one. It asks
Slurm again, shortens the list where too few other nodes are up, and queues the next review. While the run trains, its
batch script keeps postponing the review. It begins soon after that script is gone, for example after a node failure,
when Slurm queues the job again with the old list.

A job that has lost a node is also reviewed while its list is empty. A node that was cut off may come back in the belief
that it still runs the job. Slurm 22.05 then refuses to start the job there ("Duplicate jobid"), drains the node, and
holds the job for a person to release it. The review does that.

Slurm 22.05 lets a job with ``--no-kill`` run on without its batch script. If no other process of the job is left to
requeue it (:func:`slurm.batch.member.requeue_without_supervisor`), the review does. Such a job always has a review.

Usage, in the review: ``python -m slurm.batch.excluded_nodes RUN JOB SECONDS``.
"""

import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from motionmae.errors import UserError
from motionmae.text import join_lines
from slurm import scontrol
from slurm.attempt_log import AttemptLog
from slurm.batch.batch_log import log
from slurm.job_state import JobRecord
from slurm.sbatch import batch_script

FIRST_REVIEW = 30
"""Seconds until the first review of a waiting job. Each further one waits twice as long."""
LONGEST_PAUSE = 900
"""Seconds between two reviews, at most."""
POSTPONE_SECONDS = 120
"""Seconds until the review of a training job, which postpones it twice in this time."""
HELD = "launch_failed_requeued_held"
"""Slurm's reason for a job that waits because a node did not start its batch script. Holds of people have others."""
_ON_ANOTHER_NODE = (
    "trap '' TERM  # of the requeue",
    "failed=$(scontrol show job -o $SLURM_JOB_ID | sed -n 's/.*ExcNodeList=\\([^ (]*\\).*/\\1/p')",
    "scontrol requeue $SLURM_JOB_ID",
    "scontrol update JobId=$SLURM_JOB_ID StartTime=now+60 ExcNodeList=${failed:+$failed,}$SLURMD_NODENAME",
)
"""The rest of a review's script: where this node cannot read the code or the run folder, try another one."""
_CODE = Path(__file__).resolve().parents[2]


def plan(run: Path, job_id: str) -> list[str]:
    """Return the nodes to exclude: those on which the run failed, as far as Slurm could start the job without them.

    If too few others are up, the nodes whose failure is the longest ago are used again first.
    """
    failed = list(AttemptLog(run).excluded_nodes())
    if not failed:
        return []
    script, own, job = scontrol.batch_script(job_id), own_exclusions(run), scontrol.show_job(job_id)
    up = scontrol.usable_nodes(job.queue.get("partition", "")) if job else []

    def is_enough(excluded: Sequence[str]) -> bool:
        if script and scontrol.could_start(script, own):
            return scontrol.could_start(script, [*own, *excluded])
        return job is None or not up or len(set(up) - {*own, *excluded}) >= job.nodes

    first = next(first for first in range(len(failed) + 1) if is_enough(failed[first:]) or first == len(failed))
    return failed[first:]


def own_exclusions(run: Path) -> list[str]:
    """Return the nodes that the user excluded with `launch.exclude`."""
    try:
        record = JobRecord.read(run)
    except UserError:  # damaged; the next submission says so
        record = None
    return scontrol.expand_nodes(record.exclude) if record else []


def review(run: Path, job_id: str, pause: int = FIRST_REVIEW) -> None:
    """Bring the list of a waiting job up to date, and arrange the next review in ``pause`` seconds."""
    job = scontrol.show_job(job_id)
    if job is None or not job.active:
        return
    if job.name == "RUNNING":  # its batch script did not postpone the review, perhaps because its node is lost
        arrange_review(run, job_id, POSTPONE_SECONDS)
        if scontrol.down_nodes([job.batch_host]):
            log(f"node {job.batch_host} of the batch script is down: job {job_id} is requeued")
            scontrol.requeue(job_id)
        return
    if job.detail == HELD and scontrol.release(job_id):
        log(f"job {job_id} was held, because a node refused to start it: released")
    wanted = plan(run, job_id)
    needs_next = wanted or AttemptLog(run).has_lost_node(job_id)
    if needs_next and not arrange_review(run, job_id, pause, min(2 * pause, LONGEST_PAUSE)):
        wanted = []
    change_list(run, job_id, job, wanted)


def change_list(run: Path, job_id: str, job: scontrol.JobState, wanted: Sequence[str]) -> bool:
    """Set the list of a waiting job to the user's own exclusions and ``wanted``; return False if Slurm refuses."""
    used_again = [node for node in AttemptLog(run).excluded_nodes() if node in job.excluded and node not in wanted]
    excluded = sorted({*own_exclusions(run), *wanted})
    if excluded == sorted(job.excluded):
        return True
    if used_again:
        log(f"this run failed before on {', '.join(used_again)}, but too few other nodes are up: used again")
    return scontrol.update(job_id, {"ExcNodeList": ",".join(excluded)})


def arrange_review(run: Path, job_id: str, seconds: int, next_pause: int = FIRST_REVIEW) -> bool:
    """Let the review of a job begin in ``seconds``: the one that waits, or a new one. Return False if Slurm refuses."""
    waiting = scontrol.waiting_jobs(_name(job_id))
    if waiting and scontrol.update(waiting[0], {"StartTime": f"now+{seconds}"}):
        return True
    job = scontrol.show_job(job_id)
    command = [sys.executable, "-m", "slurm.batch.excluded_nodes", str(run), job_id, str(next_pause)]
    options = {
        "job-name": _name(job_id),
        "begin": f"now+{seconds}",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": 1,
        "time": 5,
        "output": "/dev/null",  # a node that cannot write to the run folder could not start the review
        "chdir": _CODE,
        **(job.queue if job else {}),
    }
    done = scontrol.submit_script(batch_script(options, [f"{shlex.join(command)} && exit", *_ON_ANOTHER_NODE]))
    if done.returncode:
        log(f"Slurm refuses a review of the excluded nodes ({join_lines(done.stderr)}): none is excluded")
    return done.returncode == 0


def cancel_review(job_id: str) -> None:
    """Cancel the review that waits for a job, if any."""
    if waiting := scontrol.waiting_jobs(_name(job_id)):
        scontrol.cancel(*waiting)


@contextmanager
def postponed_review(run: Path, job_id: str, no_kill: bool) -> Iterator[None]:
    """Postpone the review of this job again and again, from a thread, if the job needs one."""
    job = scontrol.show_job(job_id)
    stop = threading.Event()

    def postpone() -> None:
        arrange_review(run, job_id, POSTPONE_SECONDS)
        while not stop.wait(POSTPONE_SECONDS / 2):
            arrange_review(run, job_id, POSTPONE_SECONDS)

    attempts = AttemptLog(run)
    has_list = job is not None and set(job.excluded) & set(attempts.excluded_nodes())
    if no_kill or has_list or attempts.has_lost_node(job_id):
        threading.Thread(target=postpone, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _name(job_id: str) -> str:
    return f"review-{job_id}"


if __name__ == "__main__":
    _run, _job, _pause = sys.argv[1:]
    _record = JobRecord.read(Path(_run))
    with Path(_record.log if _record else os.devnull).open("a") as _file, redirect_stdout(_file):
        if scontrol.show_job(_job) is None:
            sys.exit(1)
        review(Path(_run), _job, int(_pause))

"""Chain of a run's jobs (`launch.chain`), for sites that do not requeue a job.

The jobs of a chain have one name, and those behind the first, its *links*, have ``--dependency=singleton``: Slurm
starts a link when all earlier jobs are over, and a requeued job is not. A link therefore begins only if Slurm ends the
job before it for good: at a preemption with PreemptMode=CANCEL, at a time limit or a node failure without requeue, or
where a node has no scontrol. ``job.json`` names the chain. A link that begins takes the run over there, and submits
further links if its node has sbatch. It ends at once if the run has finished, or if a person cancelled the job before.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from submitit.core.utils import JobPaths

from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.history import AttemptTracker, RunHistory
from motionmae.text import join_lines
from slurm import scontrol
from slurm.batch.batch_log import log
from slurm.job_state import JobRecord

LINK_VARIABLE = "MOTIONMAE_CHAIN_LINK"
"""Variable of every link."""
MOST_STALLED = 20
"""Links that may begin without a new checkpoint before no further ones are submitted."""


def dependency_of_link(given: str) -> str:
    """Return the dependency of a link, in sbatch's notation, for a run with the dependency ``given``."""
    return "singleton" if "?" in given else ",".join(filter(None, (given, "singleton")))  # ? means any of them


class Chain:
    """Chain of a run, as one of its jobs sees it. Without `launch.chain` it has no links and does nothing."""

    def __init__(self, run: RunFolder, job_id: str) -> None:
        self.run, self.job_id = run, job_id

    @property
    def record(self) -> JobRecord | None:
        """The chain's record; None without a chain, or if the run was submitted again since."""
        try:
            record = JobRecord.read(self.run.path)
        except UserError:  # damaged; the next submission says so
            return None
        return record if record is not None and self.job_id in record.chain else None

    @property
    def jobs(self) -> tuple[str, ...]:
        """All jobs of the chain, or this one alone."""
        record = self.record
        return record.chain if record else (self.job_id,)

    def take_over(self, newest_step: int) -> EndReason | None:
        """Make this job the run's job, and submit the links that are missing. Return why it must end instead.

        ``newest_step`` is the step of the newest checkpoint.
        """
        record = self.record
        if record is None:
            return self._leftover() if LINK_VARIABLE in os.environ else None
        if record.job_id != self.job_id:
            before = scontrol.show_job(record.job_id)
            if before is not None and before.name == "RUNNING":
                log(f"job {record.job_id} of the chain runs: this job ends")
                return EndReason.FINISHED
            end = self._end_of_run(record, before)
            if before is not None and before.name == "PENDING":  # requeued although this job could begin
                scontrol.cancel(record.job_id)
            stalled = record.stalled + 1 if newest_step == record.step else 0
            record = replace(record.at(self.job_id), step=newest_step, stalled=stalled)
            record.write(self.run.path)
            if end is not None:
                self.close()
                return end
        self._submit_missing(record)
        return None

    def close(self) -> None:
        """Cancel the links that wait, because the run must not go on by itself."""
        record = self.record
        if record is None or record.job_id != self.job_id or not record.waiting:
            return
        waiting = record.waiting
        replace(record, chain=record.chain[: -len(waiting)]).write(self.run.path)
        if not scontrol.cancel(*waiting):
            log(f"this node cannot cancel the jobs of the chain: {', '.join(waiting)} will end when they begin")

    def goes_on_without(self) -> bool:
        """Return whether Slurm has ended this job for good and a link continues the run."""
        record = self.record
        job = scontrol.show_job(self.job_id) if record is not None and record.waiting else None
        return job is not None and job.name != "RUNNING"

    def hand_over(self, changes: dict[str, str]) -> str:
        """Return the job that continues the run when this one ends, after ``changes`` to it; empty without a link."""
        record = self.record
        waiting = self._alive(record) if record and record.job_id == self.job_id else []
        if waiting and changes:
            scontrol.update(waiting[0], changes)
        return waiting[0] if waiting else ""

    def _leftover(self) -> EndReason:
        log("this job is not of the newest submission of the run: it ends")
        return EndReason.STOPPED

    def _end_of_run(self, record: JobRecord, before: scontrol.JobState | None) -> EndReason | None:
        if AttemptTracker(RunHistory(self.run.path).events).finished:
            log("the run has finished: this job of its chain ends")
            return EndReason.FINISHED
        if before is not None and before.name == "CANCELLED":
            log(f"job {record.job_id} was cancelled: this job of its chain ends; the same command resumes the run")
            return EndReason.STOPPED
        return None

    def _alive(self, record: JobRecord) -> list[str]:
        """Return the waiting links that were not cancelled, as far as this node can ask."""
        states = {job_id: scontrol.show_job(job_id) for job_id in record.waiting}
        return [job_id for job_id, state in states.items() if state is None or state.active]

    def _submit_missing(self, record: JobRecord) -> None:
        """Submit links like this one, so that `launch.chain` of them wait."""
        alive = self._alive(record)
        missing = record.links - len(alive) if record.stalled <= MOST_STALLED else 0
        script = scontrol.batch_script(self.job_id) if missing > 0 else ""
        options = ("--dependency=singleton", f"--exclude={record.exclude}", f"--export=ALL,{LINK_VARIABLE}=1")
        for _ in range(missing if script else 0):
            done = scontrol.submit_script(script, *options)
            if done.returncode:
                log(f"Slurm refused a further job of the chain: {join_lines(done.stderr)}")
                break
            folder, link = Path(record.log).parent, done.stdout
            shutil.copyfile(*(JobPaths(folder, job_id).submitted_pickle for job_id in (self.job_id, link)))
            alive.append(link)
        begun = record.chain[: record.chain.index(self.job_id) + 1]
        if (*begun, *alive) != record.chain:
            replace(record, chain=(*begun, *alive)).write(self.run.path)

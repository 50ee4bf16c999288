"""Submit a job for a valid config: check the inputs, copy the code, submit, and write ``RUN/job.json``."""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from submitit.core.utils import FailedJobError

from motionmae.config import Config
from motionmae.config.schema import steps_per_epoch
from motionmae.config.site import Site
from motionmae.data.open_shards import check_node_file, load_manifest
from motionmae.data.remote.download import UnreachableError
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, append_row
from slurm import code_snapshot
from slurm.attempt_log import AttemptLog
from slurm.executors import TrainingExecutor, job_environment, log_folder
from slurm.job import TrainJob
from slurm.job_state import JobRecord, submission_lock
from slurm.local_executor import DetachedLocalExecutor, rank_log
from slurm.sbatch import parse_sbatch_options

ROOT = Path(__file__).resolve().parents[1]


def further_options(arguments: argparse.Namespace, site: Site) -> dict[str, str]:
    """Return the sbatch options beyond the launch section. Precedence: site file < --dependency < --sbatch."""
    dependency = {"dependency": arguments.dependency} if arguments.dependency else {}
    return {**site.sbatch, **dependency, **parse_sbatch_options(arguments.sbatch)}


def slurm_executor(
    arguments: argparse.Namespace, site: Site, config: Config, folder: Path, code: Path
) -> TrainingExecutor:
    """Return the executor for Slurm, which excludes the nodes on which the run failed before."""
    nodes = [*filter(None, [config.launch.exclude]), *AttemptLog(config.run_folder).excluded_nodes()]
    config = config.updated({"launch.exclude": ",".join(nodes)})
    return TrainingExecutor(config, folder, code, further_options(arguments, site), site.environment)


def submit(arguments: argparse.Namespace, site: Site, config: Config, before: JobRecord | None) -> JobRecord:
    """Copy the code, submit the job, and write its record to the run folder.

    ``before`` is the job record that the caller read when it checked that the run had no active job. Raises UserError
    if the record has changed since (another submission was faster), an input is missing, or Slurm refuses the job.
    """
    check_inputs(config, arguments)
    run = config.run_folder
    with submission_lock(run) as lock:
        if JobRecord.read(run) != before:
            raise UserError(f"{run} was submitted by another command a moment ago: see {run / 'job.json'}")
        snapshot = code_snapshot.collect(ROOT, outside=[Path(config.output_dir)])
        code = snapshot.write(run)
        for path in snapshot.left_out:
            print(f"note: {path} is not part of the code snapshot, because it is large and not in git")
        folder = log_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        executor: TrainingExecutor | DetachedLocalExecutor
        if arguments.cluster == "local":
            environment = job_environment(config, code, "local")
            executor = DetachedLocalExecutor(folder, run, code, config.launch, environment, lock)
        else:
            executor = slurm_executor(arguments, site, config, folder, code)
        # goodput computes the time in the queue from this event
        append_row(RunFolder(run).events, attempt="", kind=Kind.SUBMITTED.value, step=0)
        try:
            job_id = executor.submit(TrainJob(config)).job_id
        except FailedJobError as error:
            raise UserError(
                f"Slurm refused the job ({str(error).strip()}): correct the partition, account or limits"
            ) from error
        record = JobRecord(arguments.cluster, job_id, str(rank_log(folder, job_id)), str(code), time.time())
        record.write(run)
    return record


def check_inputs(config: Config, arguments: argparse.Namespace) -> None:
    """Check shards, augmentation and weights now, so that an error does not first appear when the job starts.

    Raises UserError if an input is missing or cannot be used.
    """
    check_shards(config)
    if note := check_node_file(config.data, on_this_machine=arguments.cluster == "local"):
        print(f"note: {note}")
    if config.data.rand_augment:
        from motionmae.data.rand_augment import parse_policy  # timm is slow to import

        parse_policy(config.data.rand_augment, config.clip.size)
    init = config.finetune.init
    needs_weights = config.task == "finetune" and init != "scratch"
    if needs_weights and not arguments.dependency and not Path(init).exists():  # the other job may write the weights
        raise UserError(f"finetune.init={init} does not exist: set it to a run folder, a weights file, or scratch")


def check_shards(config: Config) -> None:
    """Raise UserError if ``data.shards`` has another format version, or fewer samples than one step needs."""
    data = config.data
    quick = data.model_copy(update={"remote_retries": 1, "remote_timeout": min(data.remote_timeout, 10)})
    try:
        steps_per_epoch(config, load_manifest(data.shards, quick).samples)
    except UnreachableError as error:
        print(f"note: this machine cannot reach the shards, but the nodes may: {error}")


def describe(record: JobRecord, run: Path, argv: Sequence[str]) -> str:
    """Return a text with job ID, run folder, and the commands that follow, stop, preempt and resume the run."""
    is_installed = Path(sys.argv[0]).name == "motionmae" and Path(sys.argv[0]).is_file()  # the console script
    program = ["motionmae", "submit"] if is_installed else ["python", str(ROOT / "slurm/submit.py")]
    command = shlex.join([*program, *_resume_argv(argv)])
    stop, preempt = ("scancel", "scancel --signal=USR2") if record.cluster == "slurm" else ("kill -TERM", "kill -USR2")
    lines = {
        "job": f"{record.job_id} ({record.cluster})",
        "run folder": str(run),
        "log": record.log,
        "follow": f"{command} --follow",
        "stop": f"{stop} {record.job_id}   # saves a checkpoint and ends",
        "preempt": f"{preempt} {record.job_id}   # saves a checkpoint, requeues itself and continues",
        "resume": command,
    }
    if record.cluster == "slurm" and (excluded := AttemptLog(run).excluded_nodes()):
        nodes = ", ".join(f"{node} ({reason})" for node, reason in excluded.items())
        lines["excluded"] = f"{nodes}   # to use them again: rm {AttemptLog(run).path}"
    return "\n".join(f"{key:<11}{value}" for key, value in lines.items())


def _resume_argv(argv: Sequence[str]) -> Iterator[str]:
    """Yield the options of one run that still apply when the run is submitted again."""
    remaining = iter(argv)
    for argument in remaining:
        if argument in ("--dependency", "--seeds"):
            next(remaining, None)
        elif argument != "--follow" and not argument.startswith(("--dependency=", "--seeds=")):
            yield argument

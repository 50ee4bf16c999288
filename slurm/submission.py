"""From a checked config to a job: looked over once more, the code's snapshot taken, queued, noted in the run folder."""

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
from motionmae.data.remote.download import UnreachableError
from motionmae.data.shards.manifest import load_manifest
from motionmae.errors import UserError
from slurm import code_snapshot, executors
from slurm.attempt_log import Attempts
from slurm.executors import TrainingExecutor
from slurm.job import TrainJob
from slurm.job_state import JobRecord, submission_lock
from slurm.launch_options import parse_sbatch_options
from slurm.local_executor import rank_log

ROOT = Path(__file__).resolve().parents[1]


def executor_of(
    arguments: argparse.Namespace, site: Site, config: Config, folder: Path, code: Path
) -> TrainingExecutor:
    """The executor for Slurm, away from the nodes that have failed the run before."""
    dependency = {"dependency": arguments.dependency} if arguments.dependency else {}
    extra = {**site.sbatch, **dependency, **parse_sbatch_options(arguments.sbatch)}
    excluded = Attempts(Path(config.output_dir) / config.name).excluded()
    exclude = ",".join([*filter(None, [config.launch.exclude]), *excluded])
    config = config.updated({"launch.exclude": exclude})
    return TrainingExecutor(config, folder, code, extra, site.environment)


def submit(arguments: argparse.Namespace, site: Site, config: Config, run: Path, before: JobRecord | None) -> JobRecord:
    """Take the snapshot, submit the job, and note it in the run folder.

    Args:
        arguments: the command line.
        site: the site file.
        config: the run.
        run: its folder.
        before: the run folder's record when it was found to have no active job.

    Raises:
        UserError: if the run is under way meanwhile, no rank could read what it names, or Slurm refuses the job.
    """
    check_shards(config)
    check_beton(config, here=arguments.cluster == "local")
    if config.data.rand_augment:
        from motionmae.data.rand_augment import parse_policy  # timm is slow to import

        parse_policy(config.data.rand_augment, config.clip.size)
    if not arguments.dependency:  # else another job may be about to write them
        check_weights(config)
    with submission_lock(run) as lock:
        if JobRecord.read(run) != before:
            raise UserError(f"{run} was submitted by somebody else a moment ago: see {run / 'job.json'}")
        taken = code_snapshot.survey(ROOT, outside=[Path(config.output_dir)])
        code = taken.write(run)
        for path in taken.left_out:
            print(f"note: {path} is no part of the code snapshot: git does not know it, and it is large")
        folder = executors.log_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.cluster == "local":
            executor: TrainingExecutor | executors.DetachedLocalExecutor = executors.local_executor(
                config, folder, run, code, lock
            )
        else:
            executor = executor_of(arguments, site, config, folder, code)
        announce(run)
        try:
            job_id = executor.submit(TrainJob(config)).job_id
        except FailedJobError as error:
            raise UserError(f"Slurm refused the job: {str(error).strip()}") from error
        record = JobRecord(arguments.cluster, job_id, str(rank_log(folder, job_id)), str(code), time.time())
        record.write(run)
    return record


def announce(run: Path) -> None:
    """Note in the run's event log that it waits from now on: how long it queued is then seen in its goodput."""
    from motionmae.runs.directory import RunFolder
    from motionmae.runs.events import Kind, LineFile  # following a job needs nothing of training

    log = LineFile(RunFolder(run).events)
    log.append({"attempt": "", "kind": Kind.SUBMITTED.value, "step": 0, "time": time.time()})
    log.close()


def check_shards(config: Config) -> None:
    """Refuse now what every rank would refuse after waiting in the queue.

    Raises:
        UserError: if ``data.shards`` is no folder of shards of this format version, or fewer than a step takes.
    """
    data = config.data
    patience = data.model_copy(update={"remote_retries": 1, "remote_timeout": min(data.remote_timeout, 10)})
    try:
        steps_per_epoch(config, load_manifest(data.shards, patience).samples)
    except UnreachableError as error:
        print(f"note: the nodes may reach what this machine cannot: {error}")


def check_beton(config: Config, here: bool) -> None:
    """Refuse a ``data.beton`` that is not there; on Slurm only say so, as it may lie on the nodes' own disks.

    Args:
        config: the run.
        here: whether it will run on this machine.

    Raises:
        UserError: it will, and the file does not exist.
    """
    path = config.data.beton
    if not path or path.startswith("$") or Path(path).is_file():  # $TMPDIR: only the job knows
        return
    if here:
        raise UserError(
            f"data.beton={path} does not exist: write it with `python data_tools/make_beton {config.data.shards} "
            f"--out {path}`, or leave data.beton empty"
        )
    print(f"note: data.beton={path} does not exist on this machine: it must be on the disk of every node")


def check_weights(config: Config) -> None:
    """Refuse a fine-tuning whose weights to begin with are not there.

    Raises:
        UserError: naming where they were looked for.
    """
    init = config.finetune.init
    if config.task == "finetune" and init != "scratch" and not Path(init).exists():
        raise UserError(f"there are no weights at {init}: set finetune.init=RUN, to a file, or to scratch")


def describe(record: JobRecord, run: Path, arguments: Sequence[str]) -> str:
    """Job id, run folder, and the commands that follow, stop and resume it."""
    script = sys.argv[0] if Path(sys.argv[0]).name == "submit.py" else str(ROOT / "slurm/submit.py")
    command = shlex.join(["python", script, *_again(arguments)])
    if record.cluster == "slurm":
        stop, preempt = f"scancel {record.job_id}", f"scancel --signal=USR2 {record.job_id}"
    else:
        stop, preempt = f"kill -TERM {record.job_id}", f"kill -USR2 {record.job_id}"
    lines = {
        "job": f"{record.job_id} ({record.cluster})",
        "run folder": str(run),
        "log": record.log,
        "follow": f"{command} --follow",
        "stop": f"{stop}   # saves first, and stays stopped",
        "preempt": f"{preempt}   # saves, requeues itself, goes on",
        "resume": command,
    }
    if record.cluster == "slurm" and (excluded := Attempts(run).excluded()):
        nodes = ", ".join(f"{node} ({reason})" for node, reason in excluded.items())
        lines["excluded"] = f"{nodes}   # rm {Attempts(run).path} forgives them"
    return "\n".join(f"{key:<11}{value}" for key, value in lines.items())


def _again(arguments: Sequence[str]) -> Iterator[str]:
    """The words of a command that is to be given again: once a job has been queued, what it waited for is over."""
    words = iter(arguments)
    for word in words:
        if word == "--dependency":
            next(words, None)
        elif word != "--follow" and not word.startswith("--dependency="):
            yield word

"""Submit a run, pre-training or fine-tuning, to Slurm, or start it on this machine.

Examples::

    python slurm/submit.py --nodes 4 --config vitl_k400 data.shards=/data/k400
    python slurm/submit.py --nodes 4 --config vitl_k400 --dry-run
    python slurm/submit.py --cluster local --config demo data.shards=/data/toy --follow

The same command again resumes a run that has ended, and with ``--follow`` attaches to one that is under way.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # Python put this file's folder there; the packages lie above it

import argparse  # noqa: E402
import json  # noqa: E402
import shlex  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import replace  # noqa: E402

from omegaconf import OmegaConf  # noqa: E402
from submitit.core.utils import FailedJobError  # noqa: E402

from motionmae.config import Config, DataConfig, load_config  # noqa: E402
from motionmae.config.schema import accumulation_steps  # noqa: E402
from motionmae.data.manifest import load_manifest  # noqa: E402
from motionmae.data.transfer import UnreachableError  # noqa: E402
from motionmae.errors import UserError  # noqa: E402
from slurm import launch, snapshot  # noqa: E402
from slurm.follow import follow  # noqa: E402
from slurm.job import TrainJob  # noqa: E402
from slurm.local import command_line, rank_log  # noqa: E402
from slurm.record import JobRecord, state_of, submission_lock  # noqa: E402

_FLAGS = {
    "nodes": ("nodes", "nodes of the job"),
    "ranks-per-node": ("ranks_per_node", "training processes a node, one a GPU"),
    "gpus-per-node": ("gpus_per_node", "GPUs asked for a node; 0 trains on the CPU"),
    "cpus-per-rank": ("cpus_per_rank", "CPU cores a rank"),
    "time": ("timeout_minutes", "time limit of one incarnation: minutes, HH:MM:SS or D-HH:MM:SS"),
    "signal-seconds": ("signal_seconds", "how long before the limit the run is told to save"),
    "max-timeouts": ("max_timeouts", "time-outs after which the run stops requeueing itself"),
    "partition": ("partition", "Slurm partition"),
    "account": ("account", "account to charge"),
    "qos": ("qos", "quality of service"),
    "constraint": ("constraint", "node features, e.g. a100"),
    "exclude": ("exclude", "nodes never to be used, e.g. node[3-4]"),
    "comment": ("comment", "free text that squeue shows"),
}


def _parser() -> argparse.ArgumentParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="slurm/submit.py",
        description=description,
        epilog=examples.replace("::", ":").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="name of a file in configs/, or the path of a YAML file")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine")
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted, and an estimate")
    parser.add_argument("--follow", action="store_true", help="show the log of rank 0 until the run ends")
    for flag, (key, text) in _FLAGS.items():
        parser.add_argument(f"--{flag}", dest=key, metavar=flag.split("-")[0].upper(), help=f"{text} (launch.{key})")
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any further sbatch option")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, e.g. optim.batch=256")
    return parser


def load(arguments: argparse.Namespace) -> Config:
    """The configuration with overrides, then flags, and its folders made absolute.

    Raises:
        UserError: for what no run could be made of.
    """
    flags = {key: getattr(arguments, key) for key, _ in _FLAGS.values() if getattr(arguments, key) is not None}
    if "timeout_minutes" in flags:
        flags["timeout_minutes"] = str(launch.minutes(flags["timeout_minutes"]))
    values = {key: json.dumps(value) if key in launch.TEXTS else value for key, value in flags.items()}
    overrides = [*arguments.overrides, *(f"launch.{key}={value}" for key, value in values.items())]
    config = launch.absolute_paths(load_config(arguments.config, overrides))
    if arguments.cluster == "local" and config.launch.nodes != 1:
        raise UserError(f"--cluster local is this machine alone, not {config.launch.nodes} nodes: add --nodes 1")
    if arguments.cluster == "local" and arguments.sbatch:
        raise UserError("--sbatch is for Slurm: leave it out with --cluster local")
    if config.launch.signal_seconds >= 60 * config.launch.timeout_minutes:
        raise UserError(
            f"launch.signal_seconds={config.launch.signal_seconds} is no less than "
            f"launch.timeout_minutes={config.launch.timeout_minutes}: allow more time, or be signalled later"
        )
    accumulation_steps(config, config.launch.nodes * config.launch.ranks_per_node)
    return config


def dry_run(arguments: argparse.Namespace, config: Config) -> None:
    """Print the script as it would be submitted, the resolved configuration and the estimate; write nothing."""
    from motionmae.commands.plan import print_plan

    run = Path(config.runs) / config.name
    code = snapshot.survey(ROOT, outside=[Path(config.runs)]).folder(run)
    folder = launch.log_folder(run)
    if arguments.cluster == "slurm":
        extra = launch.sbatch_options(arguments.sbatch)
        print(launch.TrainingExecutor(config, folder, code, extra).script())
    else:
        print(command_line(folder, code, config.launch.ranks_per_node), end="\n\n")
    print("# resolved configuration")
    print(OmegaConf.to_yaml(OmegaConf.structured(config)))
    print_plan(config)


def submit(arguments: argparse.Namespace, config: Config, run: Path, before: JobRecord | None) -> JobRecord:
    """Take the snapshot, submit the job, and note it in the run folder.

    Args:
        arguments: the command line.
        config: the run.
        run: its folder.
        before: the run folder's record when it was found to have no active job.

    Raises:
        UserError: if the run is under way meanwhile, the shards are no shards, or Slurm refuses the job.
    """
    check_shards(config.data)
    check_weights(config)
    with submission_lock(run) as lock:
        if JobRecord.read(run) != before:
            raise UserError(f"{run} was submitted by somebody else a moment ago: see {run / 'job.json'}")
        taken = snapshot.survey(ROOT, outside=[Path(config.runs)])
        code = taken.write(run)
        for path in taken.left_out:
            print(f"note: {path} is no part of the code snapshot: git does not know it, and it is large")
        folder = launch.log_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.cluster == "local":
            executor: launch.TrainingExecutor | launch.DetachedLocalExecutor = launch.local_executor(
                config, folder, run, code, lock
            )
        else:
            executor = launch.TrainingExecutor(config, folder, code, launch.sbatch_options(arguments.sbatch))
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
    from motionmae.training.events import Kind, LineFile  # following a job needs nothing of training
    from motionmae.training.runfolder import RunFolder

    log = LineFile(RunFolder(run).events)
    log.append({"incarnation": "", "kind": Kind.SUBMITTED.value, "step": 0, "time": time.time()})
    log.close()


def check_shards(data: DataConfig) -> None:
    """Refuse now what every rank would refuse after waiting in the queue.

    Raises:
        UserError: if ``data.shards`` is no folder of shards of this format version.
    """
    if not data.shards:
        raise UserError("data.shards is empty: add data.shards=FOLDER, the --out of data_tools/make_shards")
    try:
        load_manifest(data.shards, replace(data, remote_retries=1, remote_timeout=min(data.remote_timeout, 10)))
    except UnreachableError as error:
        print(f"note: the nodes may reach what this machine cannot: {error}")


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
    command = shlex.join(["python", sys.argv[0], *(word for word in arguments if word != "--follow")])
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
    return "\n".join(f"{key:<11}{value}" for key, value in lines.items())


def run_command(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Do what the command line asks for and return the exit status."""
    config = load(arguments)
    if arguments.dry_run:
        dry_run(arguments, config)
        return 0
    run = Path(config.runs) / config.name
    record = JobRecord.read(run)
    if record is not None and (state := state_of(record, run)).active:
        if not arguments.follow:
            raise UserError(
                f"{run} is under way as {record.cluster} job {record.job_id} ({state.name}): add --follow to watch it, "
                "or give this one another name=..."
            )
        print(f"{run} is under way: following job {record.job_id}; nothing new is submitted")
    else:
        if arguments.cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("there is no sbatch on this machine: use a login node, --cluster local, or --dry-run")
        try:
            record = submit(arguments, config, run, record)
        except OSError as error:
            raise UserError(
                f"{run} cannot be written ({error.strerror}): make room there, or set runs=FOLDER to one "
                "you can write to"
            ) from error
        print(describe(record, run, words), flush=True)
    if not arguments.follow:
        return 0
    try:
        return follow(record, run)
    except KeyboardInterrupt:
        print(f"\nno longer following; job {record.job_id} goes on")
        return 130


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 2 for a user's mistake, with --follow that of the job."""
    words = sys.argv[1:] if words is None else words
    try:
        return run_command(_parser().parse_intermixed_args(words), words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""`motionmae submit`: check a run's inputs, copy the code, and submit the run to Slurm or to this machine."""

import argparse
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from submitit.core.utils import FailedJobError

from motionmae.commands import app
from motionmae.config import Config, absolute_paths, config_yaml, load_config, refuse_unused
from motionmae.config.schema import accumulation_steps
from motionmae.config.site import DEFAULT, Site, load_site
from motionmae.data.held_out import shards as held_out
from motionmae.data.open_shards import check_node_file
from motionmae.data.remote.download import UnreachableError
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, append_row
from motionmae.text import LINES, join_lines, say
from slurm import code_snapshot, sbatch
from slurm.attempt_log import AttemptLog
from slurm.batch import chain, excluded_nodes
from slurm.executors import TrainingExecutor, job_environment, log_folder
from slurm.job import TrainJob
from slurm.job_state import JobRecord, current_job, follow, rank_zero_log, submission_lock
from slurm.local_executor import DetachedLocalExecutor
from slurm.resume_check import check_resume, differing_settings

_CONDITION = r"(after(ok|any|notok|corr|burstbuffer)?(:\d+(_(\d+|\*))?(\+\d+)?)+|singleton)"
_DEPENDENCY = re.compile(rf"{_CONDITION}([,?]{_CONDITION})*")  # sbatch(1), --dependency
ROOT = Path(__file__).resolve().parents[1]
_DESCRIPTION = "Submit a pre-training or fine-tuning run to Slurm, or start it on this machine."
_EPILOG = """\
examples:
  motionmae submit --nodes 4 --config vitl_k400 data.shards=/data/k400
  motionmae submit --nodes 4 --config vitl_k400 --dry-run
  motionmae submit --nodes 1 --config vitb_k400 --seeds 0-4
  motionmae submit --cluster local --config demo data.shards=/data/toy --follow

The same command resumes a run that has ended, and with --follow attaches to a run that is active.
~/.config/motionmae/site.yaml holds the settings that all your runs share (docs/operate/site.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    app.add_config_arguments(parser)
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine")
    dry_help = "print changed settings, sbatch script, resolved config and an estimate; submit nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_help)
    parser.add_argument("--follow", action="store_true", help="print the log of rank 0 until the run ends")
    sbatch.add_launch_flags(parser)
    parser.add_argument("--dependency", metavar="TYPE:JOB", help="start only after another job, e.g. afterok:4711")
    sbatch.add_sbatch_argument(parser)
    seeds_help = "submit a run for each seed, in the folders NAME_seed0, NAME_seed1, ..."
    parser.add_argument("--seeds", metavar="0-4", help=seeds_help)
    site_help = f"settings shared by all your runs (default: {DEFAULT})"
    parser.add_argument("--site", type=Path, metavar="FILE", help=site_help)


def load(arguments: argparse.Namespace) -> tuple[Site, Config]:
    """Load the site file, and the config with absolute paths.

    Precedence: config file < site file < key=value < flags. ``--cluster local`` reads no site file.
    """
    slurm = arguments.cluster == "slurm"
    site = load_site(arguments.site) if slurm else Site()
    sbatch.run_options(site.sbatch, f"{site.file}: sbatch")
    overrides = [*arguments.overrides, *sbatch.launch_overrides(arguments)]
    config = absolute_paths(load_config(arguments.config, overrides, site if slurm else None))
    launch = config.launch
    if not slurm and launch.nodes != 1:
        raise UserError(f"--cluster local uses only this machine, not {launch.nodes} nodes: add --nodes 1")
    for flag in ("sbatch", "dependency", "site"):
        if not slurm and getattr(arguments, flag):
            raise UserError(f"--{flag} is for Slurm: leave it out with --cluster local")
    if 0 < launch.gpus_per_node < launch.ntasks_per_node:
        raise UserError(
            f"launch.gpus_per_node={launch.gpus_per_node} is less than launch.ntasks_per_node={launch.ntasks_per_node}"
            f", but every rank needs its own GPU: add --ntasks-per-node {launch.gpus_per_node}, or request more GPUs"
        )
    accumulation_steps(config, launch.nodes * launch.ntasks_per_node)
    return site, config


def further_options(arguments: argparse.Namespace, site: Site) -> sbatch.Options:
    """Return the sbatch options beyond the launch section. Precedence: site file < --dependency < --sbatch."""
    if arguments.dependency and not _DEPENDENCY.fullmatch(arguments.dependency):
        raise UserError(f"--dependency {arguments.dependency} is not possible: write for example afterok:4711")
    dependency = {"dependency": arguments.dependency} if arguments.dependency else {}
    sbatch.check_options(dependency)
    of_site = sbatch.run_options(site.sbatch, f"{site.file}: sbatch")
    return {**of_site, **dependency, **sbatch.parse_sbatch_options(arguments.sbatch)}


def slurm_executor(
    arguments: argparse.Namespace, site: Site, config: Config, folder: Path, code: Path
) -> TrainingExecutor:
    """Return the executor for Slurm, which excludes the nodes on which the run failed before."""
    nodes = [*filter(None, [config.launch.exclude]), *AttemptLog(config.run_folder).excluded_nodes()]
    config = config.updated({"launch.exclude": ",".join(nodes)})
    return TrainingExecutor(config, folder, code, further_options(arguments, site), site.environment)


def submit_links(arguments: argparse.Namespace, site: Site, config: Config, folder: Path, code: Path) -> Iterator[str]:
    """Submit the jobs that wait behind the run's job, and yield their IDs. Where Slurm refuses one, no more follow.

    They exclude no node of the run: those that begin do that (:mod:`slurm.batch.excluded_nodes`).
    """
    options = further_options(arguments, site)
    options["dependency"] = chain.dependency_of_link(str(options.get("dependency", "")))
    environment = dict(site.environment) | {chain.LINK_VARIABLE: "1"}
    executor = TrainingExecutor(config, folder, code, options, environment)
    for number in range(1, config.launch.chain + 1):
        try:
            yield executor.submit(TrainJob(config)).job_id
        except FailedJobError as error:
            say(f"note: Slurm refused job {number} of {config.launch.chain} behind the run's job: {join_lines(error)}")
            return


def dry_run(arguments: argparse.Namespace, site: Site, config: Config) -> None:
    """Print what differs from the defaults, the sbatch script, the resolved config and the estimate. Write nothing.

    Raises UserError if the run could not be resumed with these settings.
    """
    from motionmae.commands.plan import default_assumptions, print_plan

    check_resume(config)
    code = code_snapshot.collect(ROOT, outside=[Path(config.output_dir)]).folder(config.run_folder)
    folder = log_folder(config.run_folder)
    if arguments.cluster == "slurm":
        script = slurm_executor(arguments, site, config, folder, code).script()
    else:
        command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
        script = f"cd {shlex.quote(str(code))} && {command}   # x {config.launch.ntasks_per_node} ranks\n"
    for line in differing_settings(config):
        say(line)
    say()
    say(script, keep=LINES)
    say("# resolved configuration")
    say(config_yaml(config), keep=LINES)
    print_plan(config, default_assumptions(config))


def check_inputs(config: Config, arguments: argparse.Namespace) -> None:
    """Check shards, augmentation and weights now, so that an error does not first appear when the job starts.

    Raises UserError if an input is missing or cannot be used.
    """
    check_resume(config)
    check_shards(config)
    if note := check_node_file(config.data, on_this_machine=arguments.cluster == "local"):
        say(f"note: {note}")
    if config.data.rand_augment:
        from motionmae.data.rand_augment import parse_policy  # timm is slow to import

        parse_policy(config.data.rand_augment, config.clip.size)
    key, init = f"{config.task}.init", config.finetune.init if config.task == "finetune" else config.pretrain.init
    if (
        init != "scratch" and not arguments.dependency and not Path(init).exists()
    ):  # the other job may write the weights
        raise UserError(f"{key}={init} does not exist: set it to a run folder, a weights file, or scratch")


def check_shards(config: Config) -> None:
    """Raise UserError if the shards do not fit the run, or say that this machine cannot reach them."""
    data = config.data
    quick = data.model_copy(update={"remote_retries": 1, "remote_timeout": min(data.remote_timeout, 10)})
    try:
        held_out.check_shards(config.updated({"data": quick}), config.launch.nodes * config.launch.ntasks_per_node)
    except UnreachableError as error:
        say(f"note: this machine cannot reach the shards, but the nodes may: {error}")


def submit(arguments: argparse.Namespace, site: Site, config: Config, before: JobRecord | None) -> JobRecord:
    """Copy the code, submit the job, and write its record to the run folder.

    ``before`` is the job record that the caller read when it checked that the run had no active job. Raises UserError
    if the record has changed since (another submission was faster), an input is missing, the
    run folder holds files of another origin, or Slurm refuses the job.
    """
    check_inputs(config, arguments)
    run, launch = config.run_folder, config.launch
    RunFolder(run).refuse_foreign()
    with submission_lock(run) as lock:
        if JobRecord.read(run) != before:
            raise UserError(f"{run} was submitted by another command a moment ago: see {run / 'job.json'}")
        snapshot = code_snapshot.collect(ROOT, outside=[Path(config.output_dir)])
        code = snapshot.write(run)
        for note in snapshot.notes():
            say(f"note: {note}")
        folder = log_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        executor: TrainingExecutor | DetachedLocalExecutor
        if arguments.cluster == "local":
            environment = job_environment(config, code, "local")
            executor = DetachedLocalExecutor(folder, run, code, launch, environment, lock)
        else:
            executor = slurm_executor(arguments, site, config, folder, code)
        # goodput computes the time in the queue from this event
        append_row(RunFolder(run).events, attempt="", kind=Kind.SUBMITTED.value, step=0)
        try:
            job_id = executor.submit(TrainJob(config)).job_id
        except FailedJobError as error:
            raise UserError(
                f"Slurm refused the job ({join_lines(error)}): correct the partition, account or limits"
            ) from error
        record = JobRecord(
            arguments.cluster, job_id, rank_zero_log(folder, job_id), str(code), time.time(), exclude=launch.exclude
        )
        if arguments.cluster == "slurm" and launch.chain:
            links = submit_links(arguments, site, config, folder, code)
            record = replace(record, chain=(job_id, *links), links=launch.chain)
        record.write(run)
    if arguments.cluster == "slurm" and AttemptLog(run).excluded_nodes():
        excluded_nodes.review(run, job_id)
    return record


def describe(record: JobRecord, run: Path, argv: Sequence[str]) -> list[str]:
    """Return lines with job ID, run folder, and the commands that follow, stop, preempt and resume the run."""
    is_installed = Path(sys.argv[0]).name == "motionmae" and Path(sys.argv[0]).is_file()  # the console script
    program = ["motionmae", "submit"] if is_installed else ["python", str(ROOT / "slurm/submit.py")]
    command = shlex.join([*program, *_resume_argv(argv)])
    on_slurm = record.cluster == "slurm"
    stop, preempt = ("scancel", "scancel --signal=USR2") if on_slurm else ("kill -TERM", "kill -USR2")
    behind = f", then {', '.join(record.waiting)}" if record.waiting else ""
    stop = f"{stop} {' '.join([record.job_id, *record.waiting])}"
    lines = {
        "job": f"{record.job_id} ({record.cluster}){behind}",
        "run folder": str(run),
        "log": record.log,
        "follow": f"{command} --follow",
        "stop": f"{stop}   # saves a checkpoint and ends",
        "preempt": f"{preempt} {record.job_id}   # saves a checkpoint, requeues itself and continues",
        "resume": command,
    }
    if on_slurm and (excluded := AttemptLog(run).excluded_nodes()):
        nodes = ", ".join(f"{node} ({reason})" for node, reason in excluded.items())
        lines["excluded"] = f"{nodes}   # to use them again: rm {AttemptLog(run).path}"
    return [f"{key:<11}{value}" for key, value in lines.items()]


def _resume_argv(argv: Sequence[str]) -> Iterator[str]:
    """Yield the options of one run that still apply when the run is submitted again."""
    remaining = iter(argv)
    for argument in remaining:
        if argument in ("--dependency", "--seeds"):
            next(remaining, None)
        elif argument != "--follow" and not argument.startswith(("--dependency=", "--seeds=")):
            yield argument


def submit_or_attach(arguments: argparse.Namespace, site: Site, config: Config, argv: Sequence[str]) -> JobRecord:
    """Submit the run, print its job ID, and return the job. With --follow, return the run's active job, if any.

    Raises UserError if the run has an active job and --follow is missing, or the run cannot be submitted.
    """
    run = config.run_folder
    record = JobRecord.read(run)
    active, state = current_job(record, run) if record is not None else (None, None)
    if active is not None and state is not None and state.active:
        if not arguments.follow:
            raise UserError(
                f"{run} is already submitted as {active.cluster} job {active.job_id} ({state.name}): add --follow to "
                "watch it, or choose another name=..."
            )
        say(f"{run} is already submitted: following job {active.job_id}; nothing new is submitted")
        return active
    if arguments.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("sbatch is missing on this machine: use a login node, --cluster local, or --dry-run")
    try:
        record = submit(arguments, site, config, record)
    except OSError as error:
        raise UserError(
            f"{error.filename or run} cannot be read or written ({error.strerror or error}): free some space, or set "
            "output_dir to a writable folder"
        ) from error
    for line in describe(record, run, argv):
        say(line)
    return record


def parse_seeds(text: str) -> list[int]:
    """Parse ``0-4``, ``1,3,7``, or a mixture of both. Raises UserError for any other text."""
    ranges = [part.split("-") for part in text.split(",")]
    if not all(1 <= len(ends) <= 2 and all(end.isdigit() for end in ends) for ends in ranges):
        raise UserError(f"--seeds {text} is not a list of seeds: write for example 0-4 or 1,3,7")
    seeds = [seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)]
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text} is empty or names a seed twice: write for example 0-4 or 1,3,7")
    return seeds


def submit_each(arguments: argparse.Namespace, site: Site, runs: Sequence[Config]) -> int:
    """Submit the runs of all seeds and return the exit status. A failed submission does not stop the others."""
    status = 0
    for run in runs:
        try:
            submit_or_attach(arguments, site, run, [*arguments.argv, f"name={run.name}", f"seed={run.seed}"])
        except UserError as error:
            say(f"error: {error}", file=sys.stderr)
            status = 2
        say()
    return status


def read(argv: Sequence[str]) -> tuple[argparse.Namespace, Site, Config]:
    """Parse a command line of `motionmae submit`, and load its site file and its config."""
    _, arguments = app.parse(["submit", *argv])
    return arguments, *load(arguments)


def run_command(argv: Sequence[str]) -> int:
    """Execute a command line of `motionmae submit`, and return the exit status."""
    return execute(*read(argv))


def execute(arguments: argparse.Namespace, site: Site, config: Config) -> int:
    """Submit, follow or print the run, and return the exit status."""
    seeds = parse_seeds(arguments.seeds) if arguments.seeds else []
    runs = [config.updated({"name": f"{config.name}_seed{seed}", "seed": seed}) for seed in seeds]
    if arguments.dry_run:
        dry_run(arguments, site, runs[0] if runs else config)
        return 0
    if runs:
        if arguments.follow or arguments.cluster == "local":
            raise UserError("--seeds submits several runs to Slurm: leave out --follow and --cluster local")
        return submit_each(arguments, site, runs)
    record = submit_or_attach(arguments, site, config, arguments.argv)
    if not arguments.follow:
        return 0
    try:
        return follow(record, config.run_folder)
    except KeyboardInterrupt:
        say(file=sys.stderr)  # below the ^C of the terminal
        raise KeyboardInterrupt(f"stopped following; job {record.job_id} continues") from None


def run(arguments: argparse.Namespace) -> int:
    """Submit the run; with `--follow` return the exit status of its job."""
    site, config = load(arguments)
    refuse_unused(config, arguments.overrides)  # not in read(): the jobs of an ablation share their overrides
    return execute(arguments, site, config)


COMMAND = app.Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

"""`motionmae submit`: submit a run to Slurm, or start it on this machine."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from motionmae.commands import app
from motionmae.config import Config, absolute_paths, config_yaml, load_config, refuse_unused
from motionmae.config.schema import accumulation_steps
from motionmae.config.site import DEFAULT, Site, load_site
from motionmae.errors import UserError
from slurm import code_snapshot
from slurm.executors import log_folder
from slurm.job_state import JobRecord, follow, state_of
from slurm.sbatch import add_launch_flags, add_sbatch_argument, launch_overrides, refuse_reserved_option
from slurm.submission import ROOT, describe, slurm_executor, submit

_DESCRIPTION = "Submit a pre-training or fine-tuning run to Slurm, or start it on this machine."
_EPILOG = """\
examples:
  motionmae submit --nodes 4 --config vitl_k400 data.shards=/data/k400
  motionmae submit --nodes 4 --config vitl_k400 --dry-run
  motionmae submit --nodes 1 --config vitb_k400 --seeds 0-4
  motionmae submit --cluster local --config demo data.shards=/data/toy --follow

The same command resumes a run that has ended, and with --follow attaches to a run that is active.
~/.config/motionmae/site.yaml holds the settings that all your runs share (docs/survival.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    app.add_config_arguments(parser)
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine")
    dry_help = "print the sbatch script, the resolved config and an estimate; submit nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_help)
    parser.add_argument("--follow", action="store_true", help="print the log of rank 0 until the run ends")
    add_launch_flags(parser)
    parser.add_argument("--dependency", metavar="TYPE:JOB", help="start only after another job, e.g. afterok:4711")
    add_sbatch_argument(parser)
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
    for option in site.sbatch:
        refuse_reserved_option(option, f"{site.file}: sbatch")
    overrides = [*arguments.overrides, *launch_overrides(arguments)]
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


def dry_run(arguments: argparse.Namespace, site: Site, config: Config) -> None:
    """Print the sbatch script, the resolved config and the estimate. Write nothing."""
    from motionmae.commands.plan import default_assumptions, print_plan

    code = code_snapshot.collect(ROOT, outside=[Path(config.output_dir)]).folder(config.run_folder)
    folder = log_folder(config.run_folder)
    if arguments.cluster == "slurm":
        print(slurm_executor(arguments, site, config, folder, code).script())
    else:
        command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
        print(f"cd {shlex.quote(str(code))} && {command}   # x {config.launch.ntasks_per_node} ranks\n")
    print("# resolved configuration")
    print(config_yaml(config))
    print_plan(config, default_assumptions(config))


def parse_seeds(text: str) -> list[int]:
    """Parse ``0-4``, ``1,3,7``, or a mixture of both. Raises UserError for any other text."""
    ranges = [part.split("-") for part in text.split(",")]
    if not all(1 <= len(ends) <= 2 and all(end.isdigit() for end in ends) for ends in ranges):
        raise UserError(f"--seeds {text} is not a list of seeds: write for example 0-4 or 1,3,7")
    seeds = [seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)]
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text} is empty or names a seed twice: write for example 0-4 or 1,3,7")
    return seeds


def submit_or_attach(arguments: argparse.Namespace, site: Site, config: Config, argv: Sequence[str]) -> JobRecord:
    """Submit the run and print its job. With --follow, return the run's active job instead, if any.

    Raises UserError if the run has an active job and --follow is missing, or the run cannot be submitted.
    """
    run = config.run_folder
    record = JobRecord.read(run)
    if record is not None and (state := state_of(record, run)).active:
        if not arguments.follow:
            raise UserError(
                f"{run} is already submitted as {record.cluster} job {record.job_id} ({state.name}): add --follow to "
                "watch it, or choose another name=..."
            )
        print(f"{run} is already submitted: following job {record.job_id}; nothing new is submitted")
        return record
    if arguments.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: use a login node, --cluster local, or --dry-run")
    try:
        record = submit(arguments, site, config, record)
    except OSError as error:
        raise UserError(
            f"{run} cannot be written ({error.strerror}): free some space, or set output_dir to a writable folder"
        ) from error
    print(describe(record, run, argv), flush=True)
    return record


def submit_each(arguments: argparse.Namespace, site: Site, runs: Sequence[Config]) -> int:
    """Submit the runs of all seeds and return the exit status. A failed submission does not stop the others."""
    status = 0
    for run in runs:
        try:
            submit_or_attach(arguments, site, run, [*arguments.argv, f"name={run.name}", f"seed={run.seed}"])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
        print()
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
        raise KeyboardInterrupt(f"\nstopped following; job {record.job_id} continues") from None


def run(arguments: argparse.Namespace) -> int:
    """Submit the run; with `--follow` return the exit status of its job."""
    site, config = load(arguments)
    refuse_unused(config, arguments.overrides)  # not in read(): the jobs of an ablation share their overrides
    return execute(arguments, site, config)


COMMAND = app.Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

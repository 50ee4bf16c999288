"""`motionmae submit`: submit a run to Slurm, or start it on this machine."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from motionmae.commands import app
from motionmae.config import Config, load_config, refuse_idle
from motionmae.config.schema import accumulation_steps
from motionmae.errors import UserError
from slurm import code_snapshot, executors
from slurm.follow import follow
from slurm.job_state import JobRecord, state_of
from slurm.launch_options import add_launch_flags, launch_overrides
from slurm.local_executor import command_line
from slurm.site import DEFAULT, Site, load_site
from slurm.submission import ROOT, describe, executor_of, submit

_DESCRIPTION = "Submit a run, pre-training or fine-tuning, to Slurm, or start it on this machine."
_EPILOG = """\
examples:
  motionmae submit --nodes 4 --config vitl_k400 data.shards=/data/k400
  motionmae submit --nodes 4 --config vitl_k400 --dry-run
  motionmae submit --nodes 1 --config vitb_k400 --seeds 0-4
  motionmae submit --cluster local --config demo data.shards=/data/toy --follow

The same command resumes a run that has ended. With --follow it attaches to a run that is under way. Options that are
the same for all runs of a cluster belong into ~/.config/motionmae/site.yaml (docs/survival.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    app.add_config_arguments(parser)
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine")
    parser.add_argument("--dry-run", action="store_true", help="print the script and an estimate, submit nothing")
    parser.add_argument("--follow", action="store_true", help="print the log of rank 0 until the run ends")
    add_launch_flags(parser)
    parser.add_argument("--dependency", metavar="TYPE:JOB", help="start after another job, e.g. afterok:4711")
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other sbatch option")
    parser.add_argument("--seeds", metavar="0-4", help="submit one run per seed: NAME_seed0, NAME_seed1, ...")
    parser.add_argument("--site", type=Path, metavar="FILE", help=f"options of your cluster (default: {DEFAULT})")


def load(arguments: argparse.Namespace, site: Site) -> Config:
    """The config of the run, with absolute folders. Precedence: config < site file < overrides < flags.

    Raises:
        UserError: the run is not possible.
    """
    slurm = arguments.cluster == "slurm"
    overrides = [
        *(site.overrides() if slurm else ()),
        *arguments.overrides,
        *launch_overrides(arguments),
    ]
    config = executors.absolute_paths(load_config(arguments.config, overrides))
    if not slurm and config.launch.nodes != 1:
        raise UserError(f"--cluster local has one node, not {config.launch.nodes}: add --nodes 1")
    for flag in ("sbatch", "dependency", "site"):
        if not slurm and getattr(arguments, flag):
            raise UserError(f"--{flag} is for Slurm: leave it out with --cluster local")
    if 0 < config.launch.gpus_per_node < config.launch.ntasks_per_node:
        raise UserError(
            f"launch.gpus_per_node={config.launch.gpus_per_node} is less than launch.ntasks_per_node="
            f"{config.launch.ntasks_per_node}, but every rank needs a GPU: "
            f"add --ntasks-per-node {config.launch.gpus_per_node}, or ask for more GPUs"
        )
    accumulation_steps(config, config.launch.nodes * config.launch.ntasks_per_node)
    return config


def dry_run(arguments: argparse.Namespace, site: Site, config: Config) -> None:
    """Print the sbatch script, the resolved config and the estimate. Writes nothing."""
    from motionmae.commands.plan import default_assumptions, print_plan

    run = Path(config.output_dir) / config.name
    code = code_snapshot.survey(ROOT, outside=[Path(config.output_dir)]).folder(run)
    folder = executors.log_folder(run)
    if arguments.cluster == "slurm":
        print(executor_of(arguments, site, config, folder, code).script())
    else:
        print(command_line(folder, code, config.launch.ntasks_per_node), end="\n\n")
    print("# resolved configuration")
    print(OmegaConf.to_yaml(OmegaConf.structured(config)))
    print_plan(config, default_assumptions(config))


def of_seed(config: Config, seed: int) -> Config:
    """The run of one seed of `--seeds`."""
    return replace(config, name=f"{config.name}_seed{seed}", seed=seed)


def seeds(text: str) -> list[int]:
    """Parse `--seeds`: ``0-4``, ``1,3,7`` or a mixture.

    Raises:
        UserError: the text has another form, or contains a seed twice.
    """
    ranges = [part.split("-") for part in text.split(",")]
    if not all(1 <= len(ends) <= 2 and all(end.isdigit() for end in ends) for ends in ranges):
        raise UserError(f"--seeds {text} is not a list of seeds: write for example 0-4 or 1,3,7")
    found = [seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)]
    if not found or len(set(found)) < len(found):
        raise UserError(f"--seeds {text} contains no seed, or one seed twice: give each seed once")
    return found


def submit_or_attach(arguments: argparse.Namespace, site: Site, config: Config, argv: Sequence[str]) -> JobRecord:
    """Submit the run, or attach to its active job.

    Raises:
        UserError: the run has an active job and `--follow` is not given, or the run cannot be submitted.
    """
    run = Path(config.output_dir) / config.name
    record = JobRecord.read(run)
    if record is not None and (state := state_of(record, run)).active:
        if not arguments.follow:
            raise UserError(
                f"{run} is under way as {record.cluster} job {record.job_id} ({state.name}): add --follow to watch it, "
                "or give this run another name=NAME"
            )
        print(f"{run} is under way: following job {record.job_id}, and submitting nothing")
        return record
    if arguments.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("this machine has no sbatch: use a login node, --cluster local, or --dry-run")
    try:
        record = submit(arguments, site, config, run, record)
    except OSError as error:
        raise UserError(
            f"{run} cannot be written ({error.strerror}): make room, or set output_dir to another folder"
        ) from error
    print(describe(record, run, argv), flush=True)
    return record


def submit_each(arguments: argparse.Namespace, site: Site, config: Config) -> int:
    """Submit one run per seed, also after the submission of another seed has failed."""
    status = 0
    argv = arguments.argv
    at = next(index for index, word in enumerate(argv) if word.startswith("--seeds"))
    others = [*argv[:at], *argv[at + (1 if "=" in argv[at] else 2) :]]
    for seed in seeds(arguments.seeds):
        run = of_seed(config, seed)
        try:
            submit_or_attach(arguments, site, run, [*others, f"name={run.name}", f"seed={seed}"])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
        print()
    return status


def read(argv: Sequence[str]) -> tuple[argparse.Namespace, Site, Config]:
    """Parse a command line of `motionmae submit`, and load its site file and its config.

    Raises:
        UserError: the run is not possible.
    """
    _, arguments = app.parse(["submit", *argv])
    return arguments, *_load(arguments)


def _load(arguments: argparse.Namespace) -> tuple[Site, Config]:
    site = load_site(arguments.site) if arguments.cluster == "slurm" else Site()
    return site, load(arguments, site)


def run_command(argv: Sequence[str]) -> int:
    """Run a command line of `motionmae submit`, whose overrides may belong to another task.

    Raises:
        UserError: the run cannot be submitted.
    """
    return _run(*read(argv))


def _run(arguments: argparse.Namespace, site: Site, config: Config) -> int:
    if arguments.dry_run:
        dry_run(arguments, site, of_seed(config, seeds(arguments.seeds)[0]) if arguments.seeds else config)
        return 0
    if arguments.seeds:
        if arguments.follow or arguments.cluster == "local":
            raise UserError("--seeds starts several runs on Slurm: leave out --follow and --cluster local")
        return submit_each(arguments, site, config)
    record = submit_or_attach(arguments, site, config, arguments.argv)
    if not arguments.follow:
        return 0
    try:
        return follow(record, Path(config.output_dir) / config.name)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"\nno longer following; job {record.job_id} continues") from None


def run(arguments: argparse.Namespace) -> int:
    """Submit the run; with `--follow` return the exit status of its job."""
    site, config = _load(arguments)
    refuse_idle(config, arguments.overrides)
    return _run(arguments, site, config)


COMMAND = app.Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

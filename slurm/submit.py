"""Submit a run, pre-training or fine-tuning, to Slurm, or start it on this machine.

Examples::

    python slurm/submit.py --nodes 4 --config vitl_k400 data.shards=/data/k400
    python slurm/submit.py --nodes 4 --config vitl_k400 --dry-run
    python slurm/submit.py --nodes 1 --config vitb_k400 --seeds 0-4
    python slurm/submit.py --cluster local --config demo data.shards=/data/toy --follow

The same command again resumes a run that has ended, and with ``--follow`` attaches to one that is under way.
What is the same for all runs of a site may be kept in ~/.config/motionmae/site.yaml (docs/survival.md).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # Python put this file's folder there; the packages lie above it

import argparse  # noqa: E402
import shutil  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from motionmae.commands.app import exit_quietly_on_broken_pipe  # noqa: E402
from motionmae.config import Config, absolute_paths, config_yaml, load_config, refuse_unused  # noqa: E402
from motionmae.config.schema import accumulation_steps  # noqa: E402
from motionmae.config.site import DEFAULT, Site, load_site  # noqa: E402
from motionmae.errors import UserError  # noqa: E402
from slurm import code_snapshot, executors  # noqa: E402
from slurm.follow import follow  # noqa: E402
from slurm.job_state import JobRecord, state_of  # noqa: E402
from slurm.launch_options import add_launch_flags, launch_overrides, refuse_reserved_option  # noqa: E402
from slurm.local_executor import command_line  # noqa: E402
from slurm.submission import describe, executor_of, submit  # noqa: E402


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
    add_launch_flags(parser)
    parser.add_argument("--dependency", metavar="TYPE:JOB", help="start only after another job, e.g. afterok:4711")
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any further sbatch option")
    parser.add_argument(
        "--seeds", metavar="0-4", help="a run for each seed, in the folders NAME_seed0, NAME_seed1, ..."
    )
    parser.add_argument(
        "--site", type=Path, metavar="FILE", help=f"what your cluster is always asked (default: {DEFAULT})"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the config, e.g. optim.global_batch_size=256"
    )
    return parser


def load(arguments: argparse.Namespace, site: Site) -> Config:
    """The configuration, changed by the site file, then overrides, then flags; its folders made absolute.

    Raises:
        UserError: for what no run could be made of.
    """
    slurm = arguments.cluster == "slurm"
    overrides = [
        *arguments.overrides,
        *launch_overrides(arguments),
    ]
    config = absolute_paths(load_config(arguments.config, overrides, site if slurm else None))
    if not slurm and config.launch.nodes != 1:
        raise UserError(f"--cluster local is this machine alone, not {config.launch.nodes} nodes: add --nodes 1")
    for flag in ("sbatch", "dependency", "site"):
        if not slurm and getattr(arguments, flag):
            raise UserError(f"--{flag} is for Slurm: leave it out with --cluster local")
    if 0 < config.launch.gpus_per_node < config.launch.ntasks_per_node:
        raise UserError(
            f"launch.gpus_per_node={config.launch.gpus_per_node} is less than launch.ntasks_per_node="
            f"{config.launch.ntasks_per_node}, and every rank needs a GPU of its own: "
            f"add --ntasks-per-node {config.launch.gpus_per_node}, or ask for more GPUs"
        )
    accumulation_steps(config, config.launch.nodes * config.launch.ntasks_per_node)
    return config


def dry_run(arguments: argparse.Namespace, site: Site, config: Config) -> None:
    """Print the script as it would be submitted, the resolved configuration and the estimate; write nothing."""
    from motionmae.commands.plan import default_assumptions, print_plan

    run = Path(config.output_dir) / config.name
    code = code_snapshot.survey(ROOT, outside=[Path(config.output_dir)]).folder(run)
    folder = executors.log_folder(run)
    if arguments.cluster == "slurm":
        print(executor_of(arguments, site, config, folder, code).script())
    else:
        print(command_line(folder, code, config.launch.ntasks_per_node), end="\n\n")
    print("# resolved configuration")
    print(config_yaml(config))
    print_plan(config, default_assumptions(config))


def of_seed(config: Config, seed: int) -> Config:
    """The run of one seed of several."""
    return config.updated({"name": f"{config.name}_seed{seed}", "seed": seed})


def seeds(text: str) -> list[int]:
    """Read ``0-4`` or ``1,3,7`` or both mixed.

    Raises:
        UserError: for anything else.
    """
    ranges = [part.split("-") for part in text.split(",")]
    if not all(1 <= len(ends) <= 2 and all(end.isdigit() for end in ends) for ends in ranges):
        raise UserError(f"--seeds {text}: write for example 0-4 or 1,3,7")
    found = [seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)]
    if not found or len(set(found)) < len(found):
        raise UserError(f"--seeds {text}: names no seed, or one of them twice")
    return found


def submit_or_attach(arguments: argparse.Namespace, site: Site, config: Config, words: Sequence[str]) -> JobRecord:
    """Submit the run, or find it under way, and say which.

    Raises:
        UserError: if it is under way and is not to be followed, or cannot be submitted.
    """
    run = Path(config.output_dir) / config.name
    record = JobRecord.read(run)
    if record is not None and (state := state_of(record, run)).active:
        if not arguments.follow:
            raise UserError(
                f"{run} is under way as {record.cluster} job {record.job_id} ({state.name}): add --follow to watch it, "
                "or give this one another name=..."
            )
        print(f"{run} is under way: following job {record.job_id}; nothing new is submitted")
        return record
    if arguments.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: use a login node, --cluster local, or --dry-run")
    try:
        record = submit(arguments, site, config, run, record)
    except OSError as error:
        raise UserError(
            f"{run} cannot be written ({error.strerror}): make room there, or set output_dir=FOLDER to one you can write to"
        ) from error
    print(describe(record, run, words), flush=True)
    return record


def submit_each(arguments: argparse.Namespace, site: Site, config: Config, words: Sequence[str]) -> int:
    """Submit a run for each seed; one that cannot be submitted does not keep the others from it."""
    status = 0
    at = next(index for index, word in enumerate(words) if word.startswith("--seeds"))
    others = [*words[:at], *words[at + (1 if "=" in words[at] else 2) :]]
    for seed in seeds(arguments.seeds):
        run = of_seed(config, seed)
        try:
            submit_or_attach(arguments, site, run, [*others, f"name={run.name}", f"seed={seed}"])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
        print()
    return status


def read(words: Sequence[str]) -> tuple[argparse.Namespace, Site, Config]:
    """A command line, the site file that goes with it, and the run that it asks for.

    Raises:
        UserError: for what no run could be made of.
    """
    arguments = _parser().parse_intermixed_args(words)
    site = load_site(arguments.site) if arguments.cluster == "slurm" else Site()
    for option in site.sbatch:
        refuse_reserved_option(option, f"{site.file}: sbatch")
    return arguments, site, load(arguments, site)


def run_command(words: Sequence[str]) -> int:
    """Do what the command line asks for and return the exit status.

    Raises:
        UserError: if it cannot be done.
    """
    return carry_out(*read(words), words)


def carry_out(arguments: argparse.Namespace, site: Site, config: Config, words: Sequence[str]) -> int:
    """Do what :func:`read` made of ``words``; as :func:`run_command`."""
    if arguments.dry_run:
        dry_run(arguments, site, of_seed(config, seeds(arguments.seeds)[0]) if arguments.seeds else config)
        return 0
    if arguments.seeds:
        if arguments.follow or arguments.cluster == "local":
            raise UserError("--seeds starts several runs on Slurm: leave out --follow and --cluster local")
        return submit_each(arguments, site, config, words)
    record = submit_or_attach(arguments, site, config, words)
    if not arguments.follow:
        return 0
    try:
        return follow(record, Path(config.output_dir) / config.name)
    except KeyboardInterrupt:
        print(f"\nno longer following; job {record.job_id} goes on")
        return 130


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 2 for a user's mistake, with --follow that of the job."""
    words = sys.argv[1:] if words is None else words
    try:
        arguments, site, config = read(words)
        refuse_unused(config, arguments.overrides)  # the jobs of a table's row share their words, and are not asked
        return carry_out(arguments, site, config, words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(exit_quietly_on_broken_pipe(main))

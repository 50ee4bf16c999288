r"""Make the shards of a large data set as a Slurm array: one job per part, then a job that writes the manifest.

examples::

  python slurm/shard.py --parts 16 --cpus 16 --time 12:00:00 -- \
      k400 --videos /data/K400 --annotations /data/K400/annotations --split train --out /data/k400/train
  python slurm/shard.py --parts 4 --dry-run -- folder --videos data/toy_videos --split train --out data/toy/train

The arguments after ``--`` are those of data_tools/make_shards. The folders must be on storage that all nodes share. A
preempted or killed part continues at the shard where it stopped. The last job starts when all parts have ended,
successfully or not; it makes the missing shards and writes the manifest. The same command continues an unfinished set.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_tools.make_shards.cli import parser as make_shards_parser
from data_tools.make_shards.shard_plan import STATE
from motionmae.errors import UserError
from slurm.sbatch import batch_script, sbatch

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="slurm/shard.py",
        description=description,
        epilog=examples.replace("::", ":").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", type=int, required=True, help="number of jobs in the array")
    parser.add_argument(
        "--cpus", type=int, default=8, help="cores per job, with one decoding process each (%(default)s)"
    )
    parser.add_argument("--time", default="24:00:00", help="time limit per job (%(default)s)")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other sbatch option, e.g. partition=cpu; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the two scripts; submit nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- MAKE_SHARDS_ARGUMENTS")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    command = options.command[options.command[:1] == ["--"] :]
    parsed = make_shards_parser().parse_args(command)
    if parsed.part or options.parts < 1 or options.cpus < 1:
        raise UserError("--parts and --cpus must be at least 1, and the array sets --part: leave --part out")
    if parsed.json:
        raise UserError("--json would be written by every part of the array: leave it out and see the logs")
    logs = parsed.out.absolute() / STATE / "logs"
    name = {"job-name": f"shards-{parsed.dataset}"}
    parts = _script(options, command, logs / "part-%a.log", array=f"0-{options.parts - 1}", **name)
    if options.dry_run:
        print(parts, _script(options, command, logs / "manifest.log", dependency="afterany:ARRAY", **name), sep="\n")
        return 0
    if not parsed.videos.is_dir():
        raise UserError(
            f"the folder {parsed.videos} does not exist: set --videos to a folder on storage that all nodes share"
        )
    logs.mkdir(parents=True, exist_ok=True)
    array = sbatch(parts)
    last = sbatch(_script(options, command, logs / "manifest.log", dependency=f"afterany:{array}", **name))
    print(f"submitted array {array} with {options.parts} parts, and job {last} for the manifest; logs: {logs}")
    return 0


def _script(options: argparse.Namespace, command: Sequence[str], log: Path, **further: str) -> str:
    """The batch script of the array, or of the job after it. ``further``: sbatch options of that job."""
    settings = {
        "cpus-per-task": str(options.cpus),
        "time": options.time,
        "output": str(log),
        **further,
        **dict(one.partition("=")[::2] for one in options.sbatch),
    }
    if "array" not in further:  # the parts have retried already
        command = [argument for argument in command if argument != "--retry"]
    run = [sys.executable, str(ROOT / "data_tools" / "make_shards"), "--workers", str(options.cpus), *command]
    part = ' --part "$SLURM_ARRAY_TASK_ID/' + f'{options.parts}"' if "array" in further else ""
    return batch_script(settings, [f"exec {shlex.join(run)}{part}"])


if __name__ == "__main__":
    sys.exit(main())

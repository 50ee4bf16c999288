r"""Make shards of a large data set as a Slurm array: one job a part, then a job that writes the manifest.

examples::

  python slurm/shard.py --parts 16 --cpus 16 --time 12:00:00 -- \
      k400 --videos /data/K400 --annotations /data/K400/annotations --split train --out /data/k400/train
  python slurm/shard.py --parts 4 --dry-run -- folder --videos data/toy_videos --split train --out data/toy/train

What follows ``--`` is a command line of data_tools/make_shards. The folders must lie on a disk that all nodes share. A
part that is preempted or killed goes on at the shard where it was; the last job starts when all parts have ended,
however they ended, makes what is missing and writes the manifest. The same command again continues or does nothing.
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
    parser.add_argument("--parts", type=int, required=True, help="jobs of the array")
    parser.add_argument(
        "--cpus", type=int, default=8, help="cores of each job, a decoding process a core (%(default)s)"
    )
    parser.add_argument("--time", default="24:00:00", help="time limit of each job (%(default)s)")
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="e.g. partition=cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the two scripts, submit nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- MAKE_SHARDS_ARGUMENTS")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    command = options.command[options.command[:1] == ["--"] :]
    asked = make_shards_parser().parse_args(command)
    if asked.part or options.parts < 1 or options.cpus < 1:
        raise UserError("--parts and --cpus must be at least 1, and --part is given by the array: leave it out")
    if asked.json:
        raise UserError("--json is of one command and every part would write it: leave it out, see the logs")
    logs = asked.out.absolute() / STATE / "logs"
    name = {"job-name": f"shards-{asked.dataset}"}
    parts = _script(options, command, logs / "part-%a.log", array=f"0-{options.parts - 1}", **name)
    if options.dry_run:
        print(parts, _script(options, command, logs / "manifest.log", dependency="afterany:ARRAY", **name), sep="\n")
        return 0
    if not asked.videos.is_dir():
        raise UserError(f"there is no folder {asked.videos}: give --videos a folder on the disk that all nodes share")
    logs.mkdir(parents=True, exist_ok=True)
    array = sbatch(parts)
    last = sbatch(_script(options, command, logs / "manifest.log", dependency=f"afterany:{array}", **name))
    print(f"array {array} of {options.parts} parts, then job {last} for the manifest; logs: {logs}")
    return 0


def _script(options: argparse.Namespace, command: Sequence[str], log: Path, **asked: str) -> str:
    """The batch script of the array, or of the job after it."""
    settings = {
        "cpus-per-task": str(options.cpus),
        "time": options.time,
        "output": str(log),
        **asked,
        **dict(one.partition("=")[::2] for one in options.sbatch),
    }
    if "array" not in asked:  # the parts have tried again
        command = [word for word in command if word != "--retry"]
    run = [sys.executable, str(ROOT / "data_tools" / "make_shards"), "--workers", str(options.cpus), *command]
    part = ' --part "$SLURM_ARRAY_TASK_ID/' + f'{options.parts}"' if "array" in asked else ""
    return batch_script(settings, [f"exec {shlex.join(run)}{part}"])


if __name__ == "__main__":
    sys.exit(main())

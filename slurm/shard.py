"""`motionmae shards submit`: make shards as a Slurm array, and then their manifest in one more job."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from data_tools.make_shards.shard_plan import STATE
from motionmae.commands import app
from motionmae.errors import UserError
from slurm.sbatch import batch_script, sbatch

_DESCRIPTION = """\
Make shards of a large data set as a Slurm array. Each job of the array makes one part. A last job writes the manifest.

The arguments after -- are those of `motionmae shards make`. All nodes must share the folders. A part that is preempted
or killed continues at the shard where it stopped. The last job starts when all parts have ended, makes missing shards
and writes the manifest. The same command continues an unfinished set."""
_EPILOG = """\
examples:
  motionmae shards submit --parts 16 --cpus 16 --time 12:00:00 -- \\
      k400 --videos /data/K400 --annotations /data/K400/annotations --split train --out /data/k400/train
  motionmae shards submit --parts 4 --dry-run -- folder --videos data/toy_videos --split train --out data/toy/train"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--parts", type=int, required=True, help="number of jobs of the array")
    parser.add_argument("--cpus", type=int, default=8, help="cores per job, each decodes in a process (%(default)s)")
    parser.add_argument("--time", default="24:00:00", help="time limit per job (%(default)s)")
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="e.g. partition=cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the two scripts, submit nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- SHARDS_MAKE_ARGUMENTS")


def run(options: argparse.Namespace) -> int:
    """Submit the jobs."""
    command = options.command[options.command[:1] == ["--"] :]
    _, asked = app.parse(["shards", "make", *command])
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
    run = [*app.PROGRAM, "shards", "make", "--workers", str(options.cpus), *command]
    part = ' --part "$SLURM_ARRAY_TASK_ID/' + f'{options.parts}"' if "array" in asked else ""
    return batch_script(settings, [f"exec {shlex.join(run)}{part}"])


COMMAND = app.Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

"""`motionmae shards submit`: make shards as a Slurm array, and then their manifest in one more job."""

import argparse
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_tools.make_shards.shard_plan import STATE
from motionmae.commands import app
from motionmae.errors import UserError
from motionmae.text import LINES, say
from slurm.sbatch import add_sbatch_argument, batch_script, parse_options, sbatch

_DESCRIPTION = """\
Make the shards of a large data set as a Slurm array: one job per part, then a job that writes the manifest.

The arguments after -- are those of `motionmae shards make`. The folders must be on storage that all nodes share. A
preempted or killed part continues at the shard where it stopped. The last job starts when all parts have ended,
successfully or not; it makes the missing shards and writes the manifest. The same command continues an unfinished
set. With --cluster local the parts run on this machine, as many at a time as its cores allow."""
_EPILOG = """\
examples:
  motionmae shards submit --parts 16 --cpus 16 --time 12:00:00 -- \\
      k400 --videos /data/K400 --annotations /data/K400/annotations --split train --out /data/k400/train
  motionmae shards submit --cluster local --parts 2 --cpus 4 -- folder --videos data/toy_videos --out data/toy/all
  motionmae shards submit --parts 4 --dry-run -- folder --videos data/toy_videos --split train --out data/toy/train"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=int, required=True, help="number of jobs in the array")
    cpus_help = "cores per job, with one decoding process each (%(default)s)"
    parser.add_argument("--cpus", type=int, default=8, help=cpus_help)
    parser.add_argument("--time", default="24:00:00", help="time limit per job (%(default)s)")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine")
    add_sbatch_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the two scripts or the commands; run nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- SHARDS_MAKE_ARGUMENTS")


def run(options: argparse.Namespace) -> int:
    command = options.command[options.command[:1] == ["--"] :]
    _, parsed = app.parse(["shards", "make", *command])
    if parsed.part or options.parts < 1 or options.cpus < 1:
        raise UserError("--parts and --cpus must be at least 1, and the array sets --part: leave --part out")
    if parsed.dataset == "webdataset" or not parsed.videos:
        raise UserError(
            "an array of jobs reads a folder of videos: give --videos; tars of videos are read by one command, "
            "`motionmae shards make webdataset`, and folders made of some tars each can be merged"
        )
    if parsed.json:
        raise UserError("every part of the array would write the --json file: leave out --json and see the logs")
    logs = parsed.out.absolute() / STATE / "logs"
    rest = [argument for argument in command if argument != "--retry"]  # the parts have retried already
    if options.cluster == "local":
        if options.sbatch:
            raise UserError("--sbatch is for Slurm: leave it out with --cluster local")
        parts_of_make = [[*command, "--part", f"{number}/{options.parts}"] for number in range(options.parts)]
        commands = [_make_command(options.cpus, one) for one in (*parts_of_make, rest)]
        return _print_commands(commands) if options.dry_run else _run_here(commands, options.cpus, logs)
    job = {"job-name": f"shards-{parsed.dataset}", "cpus-per-task": str(options.cpus), "time": options.time}
    further = parse_options(options.sbatch)

    def script(command: Sequence[str], part: str, log: str, **own: str) -> str:
        make = shlex.join(_make_command(options.cpus, command))
        return batch_script({**job, "output": str(logs / log), **own, **further}, [f"exec {make}{part}"])

    part = f' --part "$SLURM_ARRAY_TASK_ID/{options.parts}"'
    parts = script(command, part, "part-%a.log", array=f"0-{options.parts - 1}")
    if options.dry_run:
        for text in (parts, script(rest, "", "manifest.log", dependency="afterany:ARRAY")):
            say(text, keep=LINES)
        return 0
    if not parsed.videos.is_dir():
        raise UserError(
            f"the folder {parsed.videos} does not exist: set --videos to a folder on storage that all nodes share"
        )
    logs.mkdir(parents=True, exist_ok=True)
    array = sbatch(parts)
    last = sbatch(script(rest, "", "manifest.log", dependency=f"afterany:{array}"))
    say(f"submitted array {array} with {options.parts} parts, and job {last} for the manifest; logs: {logs}")
    return 0


def _make_command(cpus: int, arguments: Sequence[str]) -> list[str]:
    return [*app.PROGRAM, "shards", "make", "--workers", str(cpus), *arguments]


def _print_commands(commands: Sequence[Sequence[str]]) -> int:
    for command in commands:
        say(shlex.join(command))
    return 0


def _run_here(commands: Sequence[Sequence[str]], cpus: int, logs: Path) -> int:
    """Run the commands of the parts in processes of this machine, then the last command. Return its exit status."""
    logs.mkdir(parents=True, exist_ok=True)
    *parts, last = commands
    most = max(1, len(os.sched_getaffinity(0)) // cpus)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(parts):
            if len(running) == most:
                running[0].wait()  # it stays in the list meanwhile: an interrupt ends it, too
                del running[0]
            say(f"part {number}/{len(parts)}: see {logs / f'part-{number}.log'}")
            with (logs / f"part-{number}.log").open("ab") as log:
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        for process in running:
            process.wait()
        return subprocess.run(last, check=False).returncode
    finally:
        for process in running:
            process.terminate()
            process.wait()


COMMAND = app.Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

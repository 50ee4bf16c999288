"""The command line of benchmarks/experiments/evidence."""

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.experiments.evidence.data import describe, make_data
from benchmarks.experiments.evidence.jobs import ARMS, USES, Experiment, rows_of
from benchmarks.experiments.evidence.pool import Pool
from benchmarks.experiments.evidence.table import as_markdown, figures, read_known, write_between_marks
from motionmae.commands.app import run
from motionmae.errors import UserError
from motionmae.files import write_atomically

_DESCRIPTION = f"""\
What pre-training is worth, measured: small models on rendered videos whose classes differ in motion only, pre-trained
in several ways (arms), put to the same uses, over several seeds. Renders and shards the videos, trains, tests, and
prints the table from the files that the runs left. Finished runs are not made again, a stopped one goes on. A run's
name ends in a key of its settings, so figures of runs elsewhere, on the same videos, may come from a file (--known).

arms: {", ".join(ARMS)}
uses: {", ".join(USES)}"""

_EXAMPLES = """\
examples:
  python -m benchmarks.experiments.evidence                                                # everything, the most telling rows first
  python -m benchmarks.experiments.evidence --arm both --seed 1 --use finetune10           # one figure
  python -m benchmarks.experiments.evidence --known docs/evidence.json --json docs/evidence.json   # only what nobody has run yet
  python -m benchmarks.experiments.evidence --collect --known docs/evidence.json --write docs/results.md    # the table into the page
  python -m benchmarks.experiments.evidence --arm scratch both --seed 0 --use finetune10 --train 140 --val 70 --work runs/try \\
      -- optim.epochs=4 optim.warmup_epochs=1 optim.global_batch_size=4 engine.micro_batch_size=4   # minutes, to see it work"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = list(sys.argv[1:] if words is None else words)
    split = given.index("--") if "--" in given else len(given)
    return run(lambda: _run(parser().parse_args(given[:split]), tuple(given[split + 1 :])))


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.evidence",
        usage="%(prog)s [options] [-- key=value ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--arm", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="default: all")
    add("--seed", nargs="+", type=int, metavar="SEED", help="default: 0 1 2, and 0 for the arms beside the main four")
    add("--use", nargs="+", choices=USES, default=list(USES), metavar="USE", help="default: all")
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at once, a thread each (one a core)")
    add("--work", type=Path, default=Path("runs/evidence"), help="folder of data and runs (default: %(default)s)")
    add("--train", type=int, default=2000, help="training videos (%(default)s)")
    add("--val", type=int, default=500, help="validation videos (%(default)s)")
    add(
        "--known", type=Path, metavar="FILE", help="what --json wrote elsewhere: shown too, and its runs not made again"
    )
    add("--collect", action="store_true", help="run nothing, only print the table")
    add("--write", type=Path, metavar="PAGE", help="write the table between its marks in a Markdown page")
    add("--json", type=Path, metavar="FILE", help="write the figure of every row there, and all of --known")
    return made


def _run(options: argparse.Namespace, changes: tuple[str, ...]) -> int:
    if own := next((word for word in changes if word.startswith(("name=", "output_dir=", "seed="))), None):
        raise UserError(
            f"{own} after -- would send every run to the same place: leave it out, or use --seed and --work"
        )
    experiment = Experiment(options.work.resolve(), changes)
    jobs = {row: experiment.jobs(row) for row in rows_of(options.arm, options.seed, options.use)}
    data = describe(options.train, options.val)
    known = read_known(options.known, data) if options.known else []
    done = {record["run"] for record in known}
    wanted = list(dict.fromkeys(job for row in jobs.values() if row[-1].config.name not in done for job in row))
    failed = []
    if wanted and not options.collect:
        with _alone(experiment.work):
            make_data(experiment.work / "data", options.train, options.val)
            pool = Pool(wanted, max(1, options.jobs), experiment.work / "logs")
            pool.run()
            failed = pool.failed
    found = figures(jobs, data, known)
    text = as_markdown(found)
    print(text)
    if options.write:
        write_between_marks(options.write, text)
    if options.json:
        write_atomically(options.json, (json.dumps(found, indent=1) + "\n").encode())
    return 1 if failed else 0


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Refuse a second runner in the same folder: the two would take each other's runs away."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another benchmarks/experiments/evidence works in {work}: wait for it, or choose another --work"
            ) from None
        yield

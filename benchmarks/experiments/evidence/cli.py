"""The command line of benchmarks/experiments/evidence."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.experiments.evidence.data import describe, make_data
from benchmarks.experiments.evidence.jobs import ARMS, USES, Experiment, trials_of
from benchmarks.experiments.evidence.pool import Pool
from benchmarks.experiments.evidence.table import as_markdown, read_known, results, write_between_marks
from motionmae import locks
from motionmae.commands.app import run
from motionmae.errors import UserError
from motionmae.files import write_json

_DESCRIPTION = f"""\
Measure the value of pre-training with small models on rendered videos whose classes differ only in motion. Encoders are
pre-trained in several ways (arms) and used in several ways (uses), over several seeds. The command renders and shards
the videos, trains, tests, and prints a table of the results. Finished runs are reused and interrupted runs continue.
The name of a run ends in a hash of its settings, so results of other machines on the same videos can be read from a
file (--known).

arms: {", ".join(ARMS)}
uses: {", ".join(USES)}"""

_EXAMPLES = """\
examples (EVIDENCE stands for `python -m benchmarks.experiments.evidence`):
  EVIDENCE                                                                # all trials, the most informative first
  EVIDENCE --arm both --seed 1 --use finetune10                           # one trial
  EVIDENCE --known FILE --json FILE    # only trials without a known result; FILE is docs/measurements/evidence.json
  EVIDENCE --collect --known FILE --write docs/measurements/results.md    # update the table in the page
  EVIDENCE --arm scratch both --seed 0 --use finetune10 --train 140 --val 70 --work runs/try -- optim.epochs=4 \\
      optim.warmup_epochs=1 optim.global_batch_size=4 engine.micro_batch_size=4         # a test run of some minutes"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index("--") if "--" in argv else len(argv)
    return run(lambda: _run(parser().parse_args(argv[:split]), tuple(argv[split + 1 :])))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.evidence",
        usage="%(prog)s [options] [-- key=value ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--arm", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="default: all")
    add("--seed", nargs="+", type=int, metavar="SEED", help="default: 0 1 2 for the four main arms, 0 for the others")
    add("--use", nargs="+", choices=USES, default=list(USES), metavar="USE", help="default: all")
    cores = len(os.sched_getaffinity(0))
    add("--jobs", type=int, default=cores, help="parallel runs, with one thread each (default: one per core)")
    add("--work", type=Path, default=Path("runs/evidence"), help="folder for data and runs (default: %(default)s)")
    add("--train", type=int, default=2000, help="number of training videos (%(default)s)")
    add("--val", type=int, default=500, help="number of validation videos (%(default)s)")
    add("--known", type=Path, metavar="FILE", help="results that --json wrote; their runs are not repeated")
    add("--collect", action="store_true", help="only print the table")
    add("--write", type=Path, metavar="PAGE", help="write the table between its marks in a Markdown page")
    add("--json", type=Path, metavar="FILE", help="file for the results of all trials and of --known")
    return made


def _run(options: argparse.Namespace, changes: tuple[str, ...]) -> int:
    if own := next((word for word in changes if word.startswith(("name=", "output_dir=", "seed="))), None):
        raise UserError(f"{own} after -- would give all runs one folder: remove it, or use --seed and --work")
    experiment = Experiment(options.work.resolve(), changes)
    jobs = {trial: experiment.jobs(trial) for trial in trials_of(options.arm, options.seed, options.use)}
    data = describe(options.train, options.val)
    known = read_known(options.known, data) if options.known else []
    done = {record["run"] for record in known}
    needed = list(dict.fromkeys(job for chain in jobs.values() if chain[-1].config.name not in done for job in chain))
    failed = []
    if needed and not options.collect:
        with _work_lock(experiment.work):
            make_data(experiment.work / "data", options.train, options.val)
            pool = Pool(needed, max(1, options.jobs), experiment.work / "logs")
            pool.run()
            failed = pool.failed
    found = results(jobs, data, known)
    text = as_markdown(found)
    print(text)
    if options.write:
        write_between_marks(options.write, text)
    if options.json:
        write_json(options.json, found)
    return 1 if failed else 0


@contextmanager
def _work_lock(work: Path) -> Iterator[None]:
    """Allow only one command per folder, because two would start the same runs."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a") as file:
        if not locks.acquire(file):
            raise UserError(f"another process runs the experiment in {work}: wait for it, or choose another --work")
        yield

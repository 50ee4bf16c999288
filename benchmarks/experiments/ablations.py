"""All rows of the paper's ablation tables, by one command, and the table of what has come of them.

Every file of configs/ablations/ is a row of three jobs that Slurm starts one after the other: pre-train, fine-tune by
the data set's recipe (Table 6b), test. Rows with the same settings are run once. The same command again submits only
what is missing. With ``--cluster local`` one job after the other runs here. Options and overrides after ``--`` go to
slurm/submit.py.

Examples::

    python benchmarks/experiments/ablations.py --tables 5a 5b --dry-run
    python benchmarks/experiments/ablations.py -- --partition gpu --qos low
    python benchmarks/experiments/ablations.py --collect --markdown ablations.md
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # Python put this file's folder there; the packages lie above it

import argparse  # noqa: E402
import shlex  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from benchmarks.experiments.ablation_table import Row, finish_of, markdown, select, under_way  # noqa: E402
from motionmae.commands.app import exit_quietly_on_broken_pipe  # noqa: E402
from motionmae.errors import UserError  # noqa: E402
from motionmae.files import output_file, write_atomically  # noqa: E402
from motionmae.runs.directory import RunFolder  # noqa: E402
from slurm import submit  # noqa: E402
from slurm.executors import job_environment  # noqa: E402
from slurm.job_state import JobRecord  # noqa: E402
from slurm.launch_options import parse_sbatch_options, sbatch_options  # noqa: E402
from slurm.sbatch import batch_script, sbatch  # noqa: E402

INTERRUPTED = 130
_OWN = ("--config", "--seeds", "--dependency", "name=", "output_dir=", "finetune.init=")
_BEFORE = ("--dry-run", "--follow")


def missing(row: Row, words: Sequence[str]) -> list[tuple[RunFolder, list[str]]]:
    """The runs that a row lacks, each with its command line for slurm/submit.py.

    Args:
        row: the row.
        words: further options and overrides of slurm/submit.py.

    Raises:
        UserError: the command lines are not possible, or the row's folders hold other runs.
    """
    for word in words:
        if word.startswith(_OWN):
            raise UserError(f"{word} after -- would send every row to the same place: leave it out")
        if word in _BEFORE:
            raise UserError(f"{word} after -- is not for several jobs: leave it out (--dry-run goes before --)")
    if reason := row.foreign():
        raise UserError(f"{reason}: move it away, or choose another --runs")
    commands = ((row.pretraining, row.pretrain_words()), (row.finetuning, row.finetune_words()))
    lacking = [
        (run, [*command, f"output_dir={row.runs}", *words]) for run, command in commands if finish_of(run) is None
    ]
    for _, command in lacking:
        submit.read(command)
    return lacking


def advance(row: Row, words: Sequence[str]) -> None:
    """Submit the jobs that a row lacks, each to start when the one before has ended well.

    Args:
        row: the row.
        words: as in :func:`missing`.

    Raises:
        UserError: as :func:`missing` and slurm/submit.py.
    """
    before = ""
    for run, command in missing(row, words):
        job = under_way(run.path)
        if job is None:
            after = ["--dependency", f"afterok:{before}", "--sbatch", "kill-on-invalid-dep=yes"] if before else []
            submit.run_command([*command, *after])
            job = JobRecord.read(run.path)
        if job is None:
            return
        before = job.job_id
    if row.top1() is None and not under_way(row.testing):
        test(row, words, before)


def run_here(row: Row, words: Sequence[str]) -> None:
    """Do what a row lacks on this machine, one job after the other.

    Args:
        row: the row.
        words: as in :func:`missing`.

    Raises:
        UserError: as :func:`missing`, or a job failed.
        KeyboardInterrupt: somebody has had enough; the job under way goes on.
    """
    for run, command in missing(row, words):
        status = submit.run_command([*command, "--follow"])
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            raise UserError(f"{run.path} ended with status {status}: see {run.logs}, then give the same command again")
    if row.top1() is None and (status := subprocess.run(_test_command(row), cwd=ROOT).returncode):
        raise UserError(f"the test of {row.finetuning.path} ended with status {status}: see above")


def test(row: Row, words: Sequence[str], before: str) -> None:
    """Submit the test of a row's fine-tuned model, in a job that asks for what its fine-tuning asked for.

    Args:
        row: the row.
        words: as in :func:`missing`.
        before: job that must end well first, if any.
    """
    arguments, site, config = submit.read([*row.finetune_words(), f"output_dir={row.runs}", *words])
    row.testing.mkdir(parents=True, exist_ok=True)
    finetuning = JobRecord.read(row.finetuning.path)
    log, code = row.testing / "job.log", finetuning.code if finetuning else str(ROOT)
    exports = job_environment(config, Path(code), "slurm", site.environment)
    options = {
        "job-name": f"{row.name}_test",
        "output": str(log),
        "chdir": code,
        **sbatch_options(config.launch),
        **site.sbatch,
        **parse_sbatch_options(arguments.sbatch),
        **({"dependency": f"afterok:{before}", "kill-on-invalid-dep": "yes"} if before else {}),
    }
    srun = ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={config.launch.cpus_per_task}", *_test_command(row)]
    lines = [*(f"export {key}={shlex.quote(value)}" for key, value in exports.items()), f"exec {shlex.join(srun)}"]
    job = sbatch(batch_script(options, lines))
    JobRecord("slurm", job, str(log), code, time.time()).write(row.testing)
    print(f"test of {row.name}: job {job}, log {log}")


def _test_command(row: Row) -> list[str]:
    return [sys.executable, "-m", "motionmae", "test", str(row.finetuning.path)]


def dry_run(row: Row, words: Sequence[str]) -> int:
    """Print the jobs that :func:`advance` or :func:`run_here` would start, and return their number.

    Raises:
        UserError: as :func:`missing`.
    """
    lines = []
    for run, command in missing(row, words):
        job = under_way(run.path)
        lines.append(f"# under way: job {job.job_id}" if job else shlex.join(["python", "slurm/submit.py", *command]))
    if row.top1() is None:
        job = under_way(row.testing)
        lines.append(f"# under way: job {job.job_id}" if job else shlex.join(["python", *_test_command(row)[1:]]))
    print(f"# {row.name}", *(lines or ["# done"]), sep="\n", end="\n\n")
    return sum(not line.startswith("#") for line in lines)


def each_run(rows: Sequence[Row], words: Sequence[str], dry: bool) -> int:
    """Start what is missing of every distinct run; one that cannot be started does not keep the others from it.

    Returns the exit status.
    """
    distinct: dict[str, Row] = {}
    for row in rows:
        distinct.setdefault(row.name, row)
    status = jobs = 0
    for row in distinct.values():
        try:
            if dry:
                jobs += dry_run(row, words)
            elif submit.read([*row.pretrain_words(), *words])[0].cluster == "local":
                run_here(row, words)
            else:
                advance(row, words)
        except UserError as error:
            print(f"error: {row.trained}: {error}", file=sys.stderr)
            status = 2
    if dry:
        print(f"{jobs} jobs would be started, for {len(distinct)} distinct runs in {len(rows)} rows\n")
    return status


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    description, _, examples = (__doc__ or "").partition("Examples::")
    parser = argparse.ArgumentParser(
        prog="benchmarks/experiments/ablations.py",
        description=description.replace("``", ""),
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tables", nargs="+", default=[], help="e.g. 5a 8 10 (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--collect", action="store_true", help="only print the table")
    parser.add_argument("--dry-run", action="store_true", help="only print the jobs that would be started")
    parser.add_argument("--markdown", type=output_file, help="write the table there")
    given = list(sys.argv[1:] if words is None else words)
    split = given.index("--") if "--" in given else len(given)
    arguments, further = parser.parse_args(given[:split]), given[split + 1 :]
    try:
        rows = select(arguments.tables, arguments.runs.resolve())
        status = 0 if arguments.collect else each_run(rows, further, arguments.dry_run)
        text = markdown(rows)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nno further row is begun; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    print(text)
    if arguments.markdown:
        write_atomically(arguments.markdown, f"{text}\n".encode())
    return status


if __name__ == "__main__":
    sys.exit(exit_quietly_on_broken_pipe(main))

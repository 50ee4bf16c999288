"""Train all rows of the paper's ablation tables with one command, and print the table of results.

Every file of configs/ablations/ is a row of three jobs that depend on each other: pre-training, fine-tuning by the
recipe of its data set (Table 6b), and test. Rows with the same settings are trained once. Repeat the command to submit
the jobs that are still missing. Options and overrides after ``--`` go to `motionmae submit`. The jobs run on this
machine, one after the other, with ``-- --cluster local``.

Examples::

    python -m benchmarks.experiments.ablations --tables 5a 5b --dry-run
    python -m benchmarks.experiments.ablations -- --partition gpu --qos low
    python -m benchmarks.experiments.ablations --collect --markdown ablations.md
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments.ablation_table import AblationRow, RowJob, markdown, select
from motionmae.commands import app
from motionmae.errors import UserError
from motionmae.files import output_file, write_atomically
from slurm import submission
from slurm.executors import job_environment
from slurm.job_state import JobRecord
from slurm.sbatch import batch_script, requested_resources, sbatch

_REFUSED = ("--config", "--seeds", "--dependency", "--dry-run", "--follow", "name=", "output_dir=", "finetune.init=")


def remaining_jobs(row: AblationRow, further: Sequence[str]) -> list[tuple[RowJob, list[str]]]:
    """The remaining jobs of a row, each with its arguments of `motionmae submit`, or of `python` for a test.

    Raises:
        UserError: if the row's folders belong to other runs, or a config is not possible.
    """
    if reason := row.belongs_to_other_run():
        raise UserError(f"{reason}: move the run away, or choose another --runs")
    jobs = []
    for job in row.remaining_jobs():
        argv = [*job.argv] if job.kind == "test" else [*job.argv, f"output_dir={row.output_dir}", *further]
        if job.kind != "test":
            submission.read(argv)  # check all configs before the first submission
        jobs.append((job, argv))
    return jobs


def submit_row(row: AblationRow, further: Sequence[str]) -> None:
    """Submit the remaining jobs of a row to Slurm. Each job starts after the previous one has succeeded."""
    dependency: list[str] = []
    for job, argv in remaining_jobs(row, further):
        record = job.active_record()
        if record is None and job.kind == "test":
            finetune_argv = [*row.jobs()[1].argv, f"output_dir={row.output_dir}", *further, *dependency]
            record = submit_test(row, job, finetune_argv)
        elif record is None:
            submission.run_command([*argv, *dependency])
            record = JobRecord.read(job.folder)
        assert record is not None, "a submission writes job.json"
        dependency = ["--dependency", f"afterok:{record.job_id}", "--sbatch", "kill-on-invalid-dep=yes"]


def submit_test(row: AblationRow, job: RowJob, finetune_argv: Sequence[str]) -> JobRecord:
    """Submit the test of a row with the resources and the code snapshot of its fine-tuning."""
    arguments, site, config = submission.read(finetune_argv)
    job.folder.mkdir(parents=True, exist_ok=True)
    finetuning = JobRecord.read(row.finetuning.path)
    log, code = job.folder / "job.log", finetuning.code if finetuning else str(submission.ROOT)
    own = {"job-name": f"{row.name}_test", "output": str(log), "chdir": code}
    variables = job_environment(config, Path(code), "slurm", site.environment)
    srun = ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={config.launch.cpus_per_task}", sys.executable, *job.argv]
    lines = [*(f"export {key}={shlex.quote(value)}" for key, value in variables.items()), f"exec {shlex.join(srun)}"]
    job_id = sbatch(
        batch_script(own | requested_resources(config.launch) | submission.further_options(arguments, site), lines)
    )
    record = JobRecord("slurm", job_id, str(log), code, time.time())
    record.write(job.folder)
    print(f"test of {row.name}: job {job_id}, log {log}")
    return record


def run_row_here(row: AblationRow, further: Sequence[str]) -> None:
    """Run the remaining jobs of a row on this machine, one after the other. Ctrl-C leaves the current job running."""
    for job, argv in remaining_jobs(row, further):
        if job.kind == "test":
            status = subprocess.run([sys.executable, *argv], cwd=submission.ROOT).returncode
        else:
            status = submission.run_command([*argv, "--follow"])
        if status:
            raise UserError(f"the {job.kind} of {row.name} ended with status {status}: see {job.folder}, then repeat")


def print_row(row: AblationRow, further: Sequence[str]) -> int:
    """Print the jobs that a row would start and return their number."""
    lines = []
    for job, argv in remaining_jobs(row, further):
        record = job.active_record()
        script = [] if job.kind == "test" else ["slurm/submit.py"]
        lines.append(f"# already submitted: job {record.job_id}" if record else shlex.join(["python", *script, *argv]))
    print(f"# {row.name}", *(lines or ["# done"]), sep="\n", end="\n\n")
    return sum(not line.startswith("#") for line in lines)


def start_rows(rows: Sequence[AblationRow], further: Sequence[str], dry_run: bool) -> int:
    """Start the remaining jobs of all rows and return the exit status. A failing row does not stop the others."""
    distinct: dict[str, AblationRow] = {}
    for row in rows:
        distinct.setdefault(row.name, row)
    status = jobs = 0
    for row in distinct.values():
        try:
            if dry_run:
                jobs += print_row(row, further)
            elif submission.read([*row.jobs()[0].argv, *further])[0].cluster == "local":
                run_row_here(row, further)
            else:
                submit_row(row, further)
        except UserError as error:
            print(f"error: {row.trained_config}: {error}", file=sys.stderr)
            status = 2
    if dry_run:
        print(f"{jobs} jobs would start, for {len(distinct)} distinct runs in {len(rows)} rows\n")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return app.run(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    description, _, examples = (__doc__ or "").partition("Examples::")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.ablations",
        description=description.replace("``", ""),
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tables", nargs="+", default=[], help="tables, e.g. 5a 8 10 (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--collect", action="store_true", help="only print the table")
    parser.add_argument("--dry-run", action="store_true", help="only print the jobs that would start")
    parser.add_argument("--markdown", type=output_file, help="file for the table")
    split = argv.index("--") if "--" in argv else len(argv)
    arguments, further = parser.parse_args(argv[:split]), argv[split + 1 :]
    try:
        if refused := next((argument for argument in further if argument.startswith(_REFUSED)), None):
            raise UserError(f"{refused} after -- cannot apply to all jobs: leave it out (--dry-run goes before --)")
        rows = select(arguments.tables, arguments.runs.resolve())
        status = 0 if arguments.collect else start_rows(rows, further, arguments.dry_run)
        text = markdown(rows)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{error}\ninterrupted; repeat the command to continue") from None
    print(text)
    if arguments.markdown:
        write_atomically(arguments.markdown, f"{text}\n".encode())
    return status


if __name__ == "__main__":
    sys.exit(main())

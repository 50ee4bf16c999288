"""Train all rows of the paper's ablation tables with one command, and print the table of results.

Every file of configs/ablations/ is a row. The first line of the file is the title, with the paper's top-1 in brackets.
Rows with the same settings share the runs of the first of them, because the paper's default is in several tables.
"""

import argparse
import functools
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from motionmae.commands import app
from motionmae.config import Config, absolute_paths, flat, load_config
from motionmae.config.load import CONFIG_FOLDER, known_configs
from motionmae.config.resume import RESULT_KEYS
from motionmae.config.trees import read_yaml
from motionmae.errors import UserError
from motionmae.files import output_file, write_atomically
from motionmae.runs.directory import RunFolder
from motionmae.runs.history import RunHistory
from slurm import submission
from slurm.executors import job_environment
from slurm.job_state import JobRecord, state_of
from slurm.sbatch import batch_script, requested_resources, sbatch

_DESCRIPTION = """\
Train all rows of the paper's ablation tables, and print the table of results. Every file of configs/ablations/ is a row
of three jobs that depend on each other: pre-training, fine-tuning by the recipe of its data set (Table 6b), and test.
Rows with the same settings are trained once. Repeat the command to submit the jobs that are still missing. Options and
overrides after -- go to `motionmae submit`. The jobs run on this machine, one after the other, with -- --cluster local.
"""
_EPILOG = """\
examples:
  python -m benchmarks.experiments.ablations --tables 5a 5b --dry-run
  python -m benchmarks.experiments.ablations -- --partition gpu --qos low
  python -m benchmarks.experiments.ablations --collect --markdown ablations.md
"""
_REFUSED = ("--config", "--seeds", "--dependency", "--dry-run", "--follow", "name=", "output_dir=", "finetune.init=")


@dataclass(frozen=True)
class RowJob:
    """One of the three jobs of a row."""

    kind: str  # pre-training, fine-tuning or test
    folder: Path  # folder of job.json
    argv: tuple[str, ...]  # arguments of `motionmae submit`, or of `python` for a test

    def active_record(self) -> JobRecord | None:
        """Return the record of the job if the job runs or waits in the queue."""
        record = JobRecord.read(self.folder)
        return record if record is not None and state_of(record, self.folder).active else None


class AblationRow:
    """Row of a table: a pre-training, a fine-tuning, and a test of ``config``, with run folders in ``output_dir``."""

    def __init__(self, config: str, output_dir: Path) -> None:
        header = _config_file(config).read_text().splitlines()[0].lstrip("# ").rstrip(".")
        paper = re.search(r"\((\d+\.\d)\)", header)
        self.config, self.output_dir = config, output_dir
        self.title = header.partition(" (")[0]
        self.paper = float(paper[1]) if paper else None  # top-1 in the paper; None where our copy of the paper lacks it
        self.trained_config = shared_configs()[config]
        self.name = Path(self.trained_config).name
        self.pretraining = RunFolder(output_dir / self.name)
        self.finetuning = RunFolder(output_dir / f"{self.name}_finetune")

    def jobs(self) -> tuple[RowJob, RowJob, RowJob]:
        """Return the three jobs in their order."""
        config = load_config(self.config)
        recipe = f"finetune_{config.model.size.replace('_', '')}_{Path(config.data.location).parent.name}"
        name, init = f"name={self.finetuning.path.name}", f"finetune.init={self.pretraining.path}"
        return (
            RowJob("pre-training", self.pretraining.path, ("--config", self.trained_config)),
            RowJob("fine-tuning", self.finetuning.path, ("--config", recipe, name, init)),
            RowJob("test", self.finetuning.path / "test", ("-m", "motionmae", "test", str(self.finetuning.path))),
        )

    def remaining_jobs(self) -> list[RowJob]:
        """Return the jobs that have no result yet."""
        results = (_final_step(self.pretraining), _final_step(self.finetuning), self.top1())
        return [job for job, result in zip(self.jobs(), results, strict=True) if result is None]

    def top1(self) -> float | None:
        """Return top-1 of the finished fine-tuning with its own views and shards; None without such a test."""
        step = _final_step(self.finetuning)
        if step is None or not self.pretraining.config.is_file() or self.belongs_to_other_run():
            return None
        views = load_config(str(self.finetuning.config)).test
        expected = {"step": step, "views": f"{views.clips} x {views.crops}", "shards": views.shards}
        paths = sorted(self.finetuning.path.glob("test/*/report.json"), key=lambda path: path.stat().st_mtime)
        reports = [json.loads(path.read_text()) for path in paths]
        matching = [report["top1"] for report in reports if expected.items() <= report.items()]
        return matching[-1] if matching else None

    def state(self) -> str:
        """Describe the progress of the row."""
        if self.belongs_to_other_run():
            return "run with other settings"
        remaining = self.remaining_jobs()
        if not remaining:
            return "done"
        return f"{remaining[0].kind} {'submitted' if remaining[0].active_record() else 'missing'}"

    def belongs_to_other_run(self) -> str:
        """Describe how the runs in the row's folders differ from the row. Return "" if the runs belong to the row."""
        keys = {*_own_keys(self.config), *_own_keys(self.trained_config)}
        differences = _differences(self.pretraining, load_config(self.trained_config))
        if others := [f"{key}={run} (the row has {row})" for key, (run, row) in differences.items() if key in keys]:
            return f"{self.pretraining.path} was trained with {', '.join(others)}"
        if self.finetuning.config.is_file():
            init = load_config(str(self.finetuning.config)).finetune.init
            if Path(init).name != self.name:
                return f"{self.finetuning.path} was initialised from {init}"
        return ""

    def overridden(self) -> dict[str, str]:
        """Return for each run the settings that change the result and differ from its config or recipe."""
        found = {}
        for run, job in zip((self.pretraining, self.finetuning), self.jobs(), strict=False):
            differences = _differences(run, load_config(job.argv[1], job.argv[2:]))
            if noted := [key for key in differences if key in RESULT_KEYS]:
                found[run.path.name] = ", ".join(f"{key}={differences[key][0]}" for key in noted)
        return found


def select(tables: Sequence[str], output_dir: Path) -> list[AblationRow]:
    """Return the rows of some tables, or of all tables, in the paper's order. Raise UserError for an unknown table."""
    names = list(shared_configs())
    known = list(dict.fromkeys(_table(name) for name in names))
    unknown = [table for table in tables if table not in known]
    if unknown:
        raise UserError(f"unknown table --tables {unknown[0]}: choose from {', '.join(known)}")
    return [AblationRow(name, output_dir) for name in names if not tables or _table(name) in tables]


def markdown(rows: Sequence[AblationRow]) -> str:
    """Return the table of all rows with the paper's results, and notes on runs that differ from their configs."""
    lines = ["| row | top-1 | paper | state | run |", "|---|---|---|---|---|"]
    runs_of: dict[str, dict[str, None]] = {}
    for row in rows:
        ours, paper = (f"{value:.1f}" if value is not None else "" for value in (row.top1(), row.paper))
        lines.append(f"| {row.title} | {ours} | {paper} | {row.state()} | {row.name} |")
        for name, settings in row.overridden().items():
            runs_of.setdefault(settings, {})[name] = None
    notes = [f"Not as configured: {settings} in {', '.join(names)}." for settings, names in runs_of.items()]
    notes += sorted({f"Not counted: {reason}." for row in rows if (reason := row.belongs_to_other_run())})
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


@functools.cache
def shared_configs() -> dict[str, str]:
    """Map the config of every row, in the paper's order, to the first config with the same settings."""
    names = [name for name in known_configs() if name.startswith("ablations/")]
    first: dict[str, str] = {}
    shared = {}
    for name in sorted(names, key=lambda name: (int(re.sub(r"\D", "", _table(name))), name)):
        config = load_config(name).updated({"name": ""})
        sizes = {f"model.{key}": value for key, value in asdict(config.model.dimensions).items()}
        settings = flat(config.model_dump(mode="json")) | sizes  # a preset's sizes may also be written out
        shared[name] = first.setdefault(json.dumps(settings), name)
    return shared


def _final_step(run: RunFolder) -> int | None:
    return RunHistory(run.path).finished_step


def _differences(run: RunFolder, config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which a run differs from ``config``: by key, the run's value and that of ``config``."""
    if not run.config.is_file():
        return {}
    found, expected = (flat(absolute_paths(c).model_dump(mode="json")) for c in (load_config(str(run.config)), config))
    return {key: (found[key], value) for key, value in expected.items() if found[key] != value}


def _own_keys(config: str) -> list[str]:
    """Return the keys that a config file sets in addition to its base."""
    return [key for key in flat(read_yaml(_config_file(config))) if key != "base"]


def _config_file(config: str) -> Path:
    return CONFIG_FOLDER / f"{config}.yaml"


def _table(name: str) -> str:
    """Return the number of the table of a config, such as 5a."""
    return Path(name).name.partition("_")[0].removeprefix("table")


def remaining_commands(row: AblationRow, further: Sequence[str]) -> list[tuple[RowJob, list[str]]]:
    """Return the remaining jobs of a row, each with its arguments of `motionmae submit`, or of `python` for a test.

    Raises:
        UserError: the row's folders belong to other runs, or a config is invalid.
    """
    if reason := row.belongs_to_other_run():
        raise UserError(f"{reason}: move the run away, or choose another --runs")
    jobs = []
    for job in row.remaining_jobs():
        argv = [*job.argv]
        if job.kind != "test":
            argv += [f"output_dir={row.output_dir}", *further]
            submission.read(argv)  # check all configs before the first submission
        jobs.append((job, argv))
    return jobs


def submit_row(row: AblationRow, further: Sequence[str]) -> None:
    """Submit the remaining jobs of a row to Slurm. Each job starts after the previous one has succeeded."""
    dependency: list[str] = []
    for job, argv in remaining_commands(row, further):
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
    for job, argv in remaining_commands(row, further):
        if job.kind == "test":
            status = subprocess.run([sys.executable, *argv], cwd=submission.ROOT).returncode
        else:
            status = submission.run_command([*argv, "--follow"])
        if status:
            raise UserError(f"the {job.kind} of {row.name} ended with status {status}: see {job.folder}, then repeat")


def print_row(row: AblationRow, further: Sequence[str]) -> int:
    """Print the jobs that a row would start and return their number."""
    lines = []
    for job, argv in remaining_commands(row, further):
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.ablations",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tables", nargs="+", default=[], help="tables, such as 5a 8 10 (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--collect", action="store_true", help="only print the table")
    parser.add_argument("--dry-run", action="store_true", help="only print the jobs that would start")
    parser.add_argument("--markdown", type=output_file, help="file for the table")
    split = argv.index("--") if "--" in argv else len(argv)
    arguments, further = parser.parse_args(argv[:split]), argv[split + 1 :]
    if refused := next((argument for argument in further if argument.startswith(_REFUSED)), None):
        raise UserError(f"{refused} after -- cannot apply to all jobs: leave it out (--dry-run goes before --)")
    try:
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

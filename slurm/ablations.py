"""All rows of the paper's ablation tables, by one command, and the table of what has come of them.

Every file of configs/ablations/ is a row of three jobs that Slurm starts one after the other: pre-train, fine-tune by
the data set's recipe (Table 6b), test. The same command again submits only what is missing. With ``--cluster local``
each call takes every row one step further. Options and overrides after ``--`` go to slurm/submit.py.

Examples::

    python slurm/ablations.py --tables 5a 5b --dry-run
    python slurm/ablations.py -- --partition gpu --qos low
    python slurm/ablations.py --collect --markdown ablations.md
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # Python put this file's folder there; the packages lie above it

import argparse  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import shlex  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from enum import Enum  # noqa: E402

from motionmae.config import load_config  # noqa: E402
from motionmae.config.load import CONFIG_FOLDER, known_configs  # noqa: E402
from motionmae.data.files import output_file, write_atomically  # noqa: E402
from motionmae.errors import UserError  # noqa: E402
from motionmae.training.events import Kind, read_rows  # noqa: E402
from motionmae.training.runfolder import RunFolder  # noqa: E402
from slurm import submit  # noqa: E402
from slurm.launch import options_of, rank_environment, sbatch_options  # noqa: E402
from slurm.record import JobRecord, state_of  # noqa: E402
from slurm.script import batch_script, sbatch  # noqa: E402


class Stage(Enum):
    """What a row waits for."""

    PRETRAIN = "to be pre-trained"
    PRETRAINING = "pre-training"
    FINETUNE = "to be fine-tuned"
    FINETUNING = "fine-tuning"
    TEST = "to be tested"
    TESTING = "testing"
    DONE = "done"


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    config: str
    """Name of its config, e.g. ablations/table5a_motion."""
    runs: Path
    """Folder of the run folders."""

    @property
    def name(self) -> str:
        """Name of its pre-training run."""
        return Path(self.config).name

    @property
    def title(self) -> str:
        """What the first line of its config says, without the paper's figure."""
        return self._first_line.partition(" (")[0]

    @property
    def paper(self) -> float | None:
        """Top-1 in the paper, where our copy of it has the figure."""
        found = re.search(r"\((\d+\.\d)\)", self._first_line)
        return float(found[1]) if found else None

    @property
    def _first_line(self) -> str:
        return (CONFIG_FOLDER / f"{self.config}.yaml").read_text().splitlines()[0].lstrip("# ").rstrip(".")

    @property
    def pretraining(self) -> RunFolder:
        """Its pre-training run."""
        return RunFolder.of(self.runs, self.name)

    @property
    def finetuning(self) -> RunFolder:
        """Its fine-tuning run."""
        return RunFolder.of(self.runs, f"{self.name}_finetune")

    def finetune_words(self) -> list[str]:
        """The command line that fine-tunes it: the recipe of its data set, on its weights."""
        config = load_config(self.config)
        data_set = Path(config.data.shards).parent.name
        recipe = f"finetune_{config.model.size.replace('_', '')}_{data_set}"
        return ["--config", recipe, f"name={self.finetuning.path.name}", f"finetune.init={self.pretraining.path}"]

    def top1(self) -> float | None:
        """Of its newest test."""
        reports = sorted(self.finetuning.path.glob("test/*/report.json"), key=lambda path: path.stat().st_mtime)
        return json.loads(reports[-1].read_text())["top1"] if reports else None

    @property
    def testing(self) -> Path:
        """Folder of its tests."""
        return self.finetuning.path / "test"

    def stage(self) -> Stage:
        """How far it is."""
        if self.top1() is not None:
            return Stage.DONE
        steps = (
            (self.pretraining, Stage.PRETRAIN, Stage.PRETRAINING),
            (self.finetuning, Stage.FINETUNE, Stage.FINETUNING),
        )
        for run, waiting, going in steps:
            if not _finished(run):
                return going if _under_way(run.path) else waiting
        return Stage.TESTING if _under_way(self.testing) else Stage.TEST


def _finished(run: RunFolder) -> bool:
    return any(row["kind"] == Kind.FINISH.value for row in read_rows(run.events))


def _under_way(folder: Path) -> JobRecord | None:
    record = JobRecord.read(folder)
    return record if record is not None and state_of(record, folder).active else None


def advance(row: Row, words: Sequence[str]) -> None:
    """Submit the jobs that a row lacks, each to start when the one before has ended well.

    Args:
        row: the row.
        words: further options and overrides of slurm/submit.py.

    Raises:
        UserError: as slurm/submit.py.
    """
    if own := next((word for word in words if word.startswith(("--config", "--seeds", "name=", "runs="))), None):
        raise UserError(f"{own} after -- would send every row to the same place: leave it out")
    before, runs = "", f"runs={row.runs}"
    for run, command in ((row.pretraining, ["--config", row.config]), (row.finetuning, row.finetune_words())):
        if _finished(run):
            continue
        job = _under_way(run.path)
        if job is None:
            after = ["--dependency", f"afterok:{before}", "--sbatch", "kill-on-invalid-dep=yes"] if before else []
            submit.run_command([*command, runs, *words, *after])
            job = JobRecord.read(run.path)
        if job is None or job.cluster == "local":
            return  # the latter knows no dependency
        before = job.job_id
    if row.top1() is None and not _under_way(row.testing):
        test(row, words, before)


def test(row: Row, words: Sequence[str], before: str) -> None:
    """Test a row's fine-tuned model: in a job that asks for what its fine-tuning asked for, or here if that was local.

    Args:
        row: the row.
        words: as in :func:`advance`.
        before: job that must end well first, if any.
    """
    arguments, site, config = submit.read([*row.finetune_words(), f"runs={row.runs}", *words])
    run = [sys.executable, "-m", "motionmae", "test", str(row.finetuning.path)]
    if arguments.cluster == "local":
        subprocess.run(run, check=False, cwd=ROOT)
        return
    row.testing.mkdir(parents=True, exist_ok=True)
    finetuning = JobRecord.read(row.finetuning.path)
    log, code = row.testing / "job.log", finetuning.code if finetuning else str(ROOT)
    exports = rank_environment(config, Path(code), site.environment)
    options = {
        "job-name": f"{row.name}_test",
        "output": str(log),
        "chdir": code,
        **options_of(config.launch),
        **site.sbatch,
        **sbatch_options(arguments.sbatch),
        **({"dependency": f"afterok:{before}", "kill-on-invalid-dep": "yes"} if before else {}),
    }
    srun = ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={config.launch.cpus_per_rank}", *run]
    lines = [*(f"export {key}={shlex.quote(value)}" for key, value in exports.items()), f"exec {shlex.join(srun)}"]
    job = sbatch(batch_script(options, lines))
    JobRecord("slurm", job, str(log), code, time.time()).write(row.testing)
    print(f"test of {row.name}: job {job}, log {log}")


def table(rows: Sequence[Row]) -> str:
    """All rows as Markdown, the paper's figure beside ours."""
    lines = ["| row | top-1 | paper | state |", "|---|---|---|---|"]
    for row in rows:
        ours, paper = (f"{value:.1f}" if value is not None else "" for value in (row.top1(), row.paper))
        lines.append(f"| {row.title} | {ours} | {paper} | {row.stage().value} |")
    return "\n".join(lines)


def select(tables: Sequence[str], runs: Path) -> list[Row]:
    """The rows of some tables, or of all, in the paper's order.

    Raises:
        UserError: there is no such table.
    """
    names = [name for name in known_configs() if name.startswith("ablations/")]
    known = sorted({Path(name).name.partition("_")[0].removeprefix("table") for name in names}, key=_order)
    unknown = [table for table in tables if table not in known]
    if unknown:
        raise UserError(f"--tables {unknown[0]} is none of the paper's ablations: choose of {', '.join(known)}")
    chosen = [n for t in known if not tables or t in tables for n in names if n.startswith(f"ablations/table{t}_")]
    return [Row(name, runs) for name in chosen]


def _order(table: str) -> tuple[int, str]:
    digits = re.match(r"\d+", table)
    return int(digits[0]) if digits else 0, table


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    description, _, examples = (__doc__ or "").partition("Examples::")
    parser = argparse.ArgumentParser(
        prog="slurm/ablations.py",
        description=description.replace("``", ""),
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tables", nargs="+", default=[], help="e.g. 5a 8 10 (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--collect", action="store_true", help="only print the table")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--markdown", type=output_file, help="write the table there")
    given = list(sys.argv[1:] if words is None else words)
    split = given.index("--") if "--" in given else len(given)
    arguments, further = parser.parse_args(given[:split]), given[split + 1 :]
    status = 0
    try:
        rows = select(arguments.tables, arguments.runs.resolve())
        for row in rows if not arguments.collect and not arguments.dry_run else ():
            try:
                advance(row, further)
            except UserError as error:  # which does not keep the other rows from it
                print(f"error: {row.config}: {error}", file=sys.stderr)
                status = 2
        text = table(rows)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    if arguments.markdown:
        write_atomically(arguments.markdown, f"{text}\n".encode())
    return status


if __name__ == "__main__":
    sys.exit(main())

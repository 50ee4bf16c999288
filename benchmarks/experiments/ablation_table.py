"""Rows of the paper's ablation tables: their jobs, how far they are, and the table of results.

Every file of configs/ablations/ is a row. The first line of the file is the title, with the paper's top-1 in brackets.
Rows with the same settings share the runs of the first of them, because the paper's default is in several tables.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from motionmae.config import Config, absolute_paths, flat, load_config
from motionmae.config.load import CONFIG_FOLDER, known_configs
from motionmae.config.resume import RESULT_KEYS
from motionmae.config.trees import read_yaml
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.history import RunHistory
from slurm.job_state import JobRecord, state_of


@dataclass(frozen=True)
class RowJob:
    """One of the three jobs of a row."""

    kind: str
    """pre-training, fine-tuning or test."""
    folder: Path
    """Folder of job.json."""
    argv: tuple[str, ...]
    """Arguments of `motionmae submit`; of `python` for a test."""

    def active_record(self) -> JobRecord | None:
        """The job in the queue or running; None if there is none."""
        record = JobRecord.read(self.folder)
        return record if record is not None and state_of(record, self.folder).active else None


class AblationRow:
    """One row of a table: a pre-training, a fine-tuning by the recipe of its data set, and a test.

    Args:
        config: name of the config, e.g. ablations/table5a_motion.
        output_dir: folder of the run folders.
    """

    def __init__(self, config: str, output_dir: Path) -> None:
        header = _config_file(config).read_text().splitlines()[0].lstrip("# ").rstrip(".")
        paper = re.search(r"\((\d+\.\d)\)", header)
        self.config = config
        self.output_dir = output_dir
        self.title = header.partition(" (")[0]
        self.paper = float(paper[1]) if paper else None
        """Top-1 in the paper; None where our copy of the paper lacks it."""
        self.trained_config = shared_configs()[config]
        """This config, or an earlier row's config with the same settings."""
        self.name = Path(self.trained_config).name
        self.pretraining = RunFolder(output_dir / self.name)
        self.finetuning = RunFolder(output_dir / f"{self.name}_finetune")

    def jobs(self) -> tuple[RowJob, RowJob, RowJob]:
        """The three jobs in their order."""
        config = load_config(self.config)
        recipe = f"finetune_{config.model.size.replace('_', '')}_{Path(config.data.shards).parent.name}"
        name, init = f"name={self.finetuning.path.name}", f"finetune.init={self.pretraining.path}"
        return (
            RowJob("pre-training", self.pretraining.path, ("--config", self.trained_config)),
            RowJob("fine-tuning", self.finetuning.path, ("--config", recipe, name, init)),
            RowJob("test", self.finetuning.path / "test", ("-m", "motionmae", "test", str(self.finetuning.path))),
        )

    def remaining_jobs(self) -> list[RowJob]:
        """Jobs that have no result yet."""
        results = (final_step(self.pretraining), final_step(self.finetuning), self.top1())
        return [job for job, result in zip(self.jobs(), results, strict=True) if result is None]

    def top1(self) -> float | None:
        """Top-1 of the finished fine-tuning, tested with its own views and shards; None without such a test."""
        step = final_step(self.finetuning)
        if step is None or not self.pretraining.config.is_file() or self.belongs_to_other_run():
            return None
        views = load_config(str(self.finetuning.config)).test
        expected = {"step": step, "views": f"{views.clips} x {views.crops}", "shards": views.shards}
        paths = sorted(self.finetuning.path.glob("test/*/report.json"), key=lambda path: path.stat().st_mtime)
        reports = [json.loads(path.read_text()) for path in paths]
        matching = [report["top1"] for report in reports if expected.items() <= report.items()]
        return matching[-1] if matching else None

    def state(self) -> str:
        """How far the row is, for the table."""
        if self.belongs_to_other_run():
            return "run with other settings"
        remaining = self.remaining_jobs()
        if not remaining:
            return "done"
        return f"{remaining[0].kind} {'submitted' if remaining[0].active_record() else 'missing'}"

    def belongs_to_other_run(self) -> str:
        """How the runs in the row's folders differ from the row; empty if they are its own or do not exist."""
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
        """Settings that change the result and differ from config or recipe, by name of the run."""
        pretraining, finetuning, _ = self.jobs()
        found = {}
        for run, job in ((self.pretraining, pretraining), (self.finetuning, finetuning)):
            differences = _differences(run, load_config(job.argv[1], job.argv[2:]))
            if noted := [key for key in differences if key in RESULT_KEYS]:
                found[run.path.name] = ", ".join(f"{key}={differences[key][0]}" for key in noted)
        return found


def select(tables: Sequence[str], output_dir: Path) -> list[AblationRow]:
    """The rows of some tables, or of all tables, in the paper's order.

    Raises:
        UserError: if a table does not exist.
    """
    names = list(shared_configs())
    known = list(dict.fromkeys(_table(name) for name in names))
    unknown = [table for table in tables if table not in known]
    if unknown:
        raise UserError(f"--tables {unknown[0]} is not an ablation of the paper: choose from {', '.join(known)}")
    return [AblationRow(name, output_dir) for name in names if not tables or _table(name) in tables]


def markdown(rows: Sequence[AblationRow]) -> str:
    """The table of all rows with the paper's results, and notes on runs that differ from their configs."""
    lines = ["| row | top-1 | paper | state | run |", "|---|---|---|---|---|"]
    for row in rows:
        ours, paper = (f"{value:.1f}" if value is not None else "" for value in (row.top1(), row.paper))
        lines.append(f"| {row.title} | {ours} | {paper} | {row.state()} | {row.name} |")
    runs_of: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, settings in row.overridden().items():
            runs_of.setdefault(settings, {})[name] = None
    notes = [f"Not as configured: {settings} in {', '.join(names)}." for settings, names in runs_of.items()]
    notes += sorted({f"Not counted: {reason}." for row in rows if (reason := row.belongs_to_other_run())})
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


@functools.cache
def shared_configs() -> dict[str, str]:
    """Config of every row, in the paper's order, mapped to the first config with the same settings."""
    names = [name for name in known_configs() if name.startswith("ablations/")]
    first: dict[str, str] = {}
    shared = {}
    for name in sorted(names, key=lambda name: (int(re.sub(r"\D", "", _table(name))), name)):
        config = load_config(name).updated({"name": ""})
        sizes = {f"model.{key}": value for key, value in asdict(config.model.dimensions).items()}
        settings = flat(config.model_dump(mode="json")) | sizes  # a preset's sizes may also be written out
        shared[name] = first.setdefault(json.dumps(settings), name)
    return shared


def final_step(run: RunFolder) -> int | None:
    """Last step of a finished run; None if the run has not finished."""
    return RunHistory(run.path).finished_step


def _differences(run: RunFolder, config: Config) -> dict[str, tuple[Any, Any]]:
    """Settings in which an existing run differs from ``config``: by key, the run's value and that of ``config``."""
    if not run.config.is_file():
        return {}
    found, expected = (flat(absolute_paths(c).model_dump(mode="json")) for c in (load_config(str(run.config)), config))
    return {key: (found[key], value) for key, value in expected.items() if found[key] != value}


def _own_keys(config: str) -> list[str]:
    """Keys that a config file sets in addition to its base."""
    return [key for key in flat(read_yaml(_config_file(config))) if key != "base"]


def _config_file(config: str) -> Path:
    return CONFIG_FOLDER / f"{config}.yaml"


def _table(name: str) -> str:
    """Number of the table of a config, e.g. 5a."""
    return Path(name).name.partition("_")[0].removeprefix("table")

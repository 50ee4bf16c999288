"""The rows of the paper's ablation tables: what each trains, how far it is, what has come of it.

Every file of configs/ablations/ is a row. Rows with the same settings (the paper's default stands in several tables)
share the runs of the first of them.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from motionmae.config import Config, absolute_paths, flat, load_config
from motionmae.config.load import CONFIG_FOLDER, known_configs
from motionmae.config.resume import RESULT_KEYS
from motionmae.config.yaml_text import read_yaml
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, read_rows
from slurm.job_state import JobRecord, state_of


class Stage(Enum):
    """What a row waits for."""

    PRETRAIN = "to be pre-trained"
    PRETRAINING = "pre-training"
    FINETUNE = "to be fine-tuned"
    FINETUNING = "fine-tuning"
    TEST = "to be tested"
    TESTING = "testing"
    DONE = "done"
    FOREIGN = "not this row's"
    """Its folders hold a run with other settings."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    config: str
    """Name of its config, e.g. ablations/table5a_motion."""
    runs: Path
    """Folder of the run folders."""

    @property
    def trained(self) -> str:
        """Name of the config that is trained for it: its own, or an earlier row's with the same settings."""
        return shared_configs()[self.config]

    @property
    def name(self) -> str:
        """Name of its pre-training run."""
        return Path(self.trained).name

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
        return _file(self.config).read_text().splitlines()[0].lstrip("# ").rstrip(".")

    @property
    def pretraining(self) -> RunFolder:
        """Its pre-training run."""
        return RunFolder.of(self.runs, self.name)

    @property
    def finetuning(self) -> RunFolder:
        """Its fine-tuning run."""
        return RunFolder.of(self.runs, f"{self.name}_finetune")

    @property
    def testing(self) -> Path:
        """Folder of its tests."""
        return self.finetuning.path / "test"

    def pretrain_words(self) -> list[str]:
        """The command line that pre-trains it."""
        return ["--config", self.trained]

    def finetune_words(self) -> list[str]:
        """The command line that fine-tunes it: the recipe of its data set, on its weights."""
        config = load_config(self.config)
        data_set = Path(config.data.shards).parent.name
        recipe = f"finetune_{config.model.size.replace('_', '')}_{data_set}"
        return ["--config", recipe, f"name={self.finetuning.path.name}", f"finetune.init={self.pretraining.path}"]

    def foreign(self) -> str:
        """How the runs in its folders are not this row's; empty where they are, or are not there yet."""
        if self.pretraining.config.is_file():
            found = _settings(load_config(str(self.pretraining.config)))
            own = _own_settings(self.trained) | _own_settings(self.config)
            others = [f"{key}={found[key]} (the row has {value})" for key, value in own.items() if found[key] != value]
            if others:
                return f"{self.pretraining.path} was trained with {', '.join(others)}"
        if self.finetuning.config.is_file():
            init = load_config(str(self.finetuning.config)).finetune.init
            if Path(init).name != self.name:
                return f"{self.finetuning.path} began with the weights of {init}"
        return ""

    def changes(self) -> dict[str, str]:
        """By name of a run, the settings that it has otherwise than its config or recipe: it was given overrides."""
        _, recipe, *words = self.finetune_words()
        runs = ((self.pretraining, load_config(self.trained)), (self.finetuning, load_config(recipe, words)))
        changed = {run.path.name: _changes(run, own) for run, own in runs if run.config.is_file()}
        return {name: changes for name, changes in changed.items() if changes}

    def top1(self) -> float | None:
        """Of the finished fine-tuning, by its own views and shards; None where that was not tested, or is another's."""
        end = finish_of(self.finetuning)
        if end is None or not self.pretraining.config.is_file() or self.foreign():
            return None
        views = load_config(str(self.finetuning.config)).test
        wanted = {"step": end, "views": f"{views.clips} x {views.crops}", "shards": views.shards}
        paths = sorted(self.testing.glob("*/report.json"), key=lambda path: path.stat().st_mtime)
        reports = [json.loads(path.read_text()) for path in paths]
        fitting = [report["top1"] for report in reports if wanted.items() <= report.items()]
        return fitting[-1] if fitting else None

    def stage(self) -> Stage:
        """How far it is."""
        if self.foreign():
            return Stage.FOREIGN
        steps = (
            (self.pretraining, Stage.PRETRAIN, Stage.PRETRAINING),
            (self.finetuning, Stage.FINETUNE, Stage.FINETUNING),
        )
        for run, waiting, going in steps:
            if finish_of(run) is None:
                return going if under_way(run.path) else waiting
        if self.top1() is not None:
            return Stage.DONE
        return Stage.TESTING if under_way(self.testing) else Stage.TEST


def finish_of(run: RunFolder) -> int | None:
    """The step at which a run was complete; None if it is not."""
    return next((row["step"] for row in read_rows(run.events) if row["kind"] == Kind.FINISH.value), None)


def under_way(folder: Path) -> JobRecord | None:
    """The job that works in a folder or waits to."""
    record = JobRecord.read(folder)
    return record if record is not None and state_of(record, folder).active else None


@functools.cache
def shared_configs() -> dict[str, str]:
    """Every row's config, in the paper's order, to the first one with the same settings."""
    first: dict[str, str] = {}
    shared = {}
    for name in _in_order([name for name in known_configs() if name.startswith("ablations/")]):
        settings = json.dumps(_settings(load_config(name).updated({"name": ""})))
        shared[name] = first.setdefault(settings, name)
    return shared


def _file(config: str) -> Path:
    return CONFIG_FOLDER / f"{config}.yaml"


def _own_settings(config: str) -> dict[str, Any]:
    """What a row's file sets beyond its base: what makes it that row."""
    values = _settings(load_config(config))
    return {key: values[key] for key in flat(read_yaml(_file(config))) if key != "base"}


def _changes(run: RunFolder, own: Config) -> str:
    """Settings that a run has otherwise than ``own`` and that its figure goes by."""
    found, wanted = (flat(absolute_paths(c).model_dump(mode="json")) for c in (load_config(str(run.config)), own))
    return ", ".join(f"{key}={found[key]}" for key in wanted if key in RESULT_KEYS and found[key] != wanted[key])


def _settings(config: Config) -> dict[str, Any]:
    """All settings by ``section.key``, the sizes that go by the model's name written out."""
    sizes = {f"model.{key}": value for key, value in asdict(config.model.dimensions).items()}
    return flat(config.model_dump(mode="json")) | sizes


def select(tables: Sequence[str], runs: Path) -> list[Row]:
    """The rows of some tables, or of all, in the paper's order.

    Raises:
        UserError: there is no such table.
    """
    names = list(shared_configs())
    known = list(dict.fromkeys(_table(name) for name in names))
    unknown = [table for table in tables if table not in known]
    if unknown:
        raise UserError(f"--tables {unknown[0]} is none of the paper's ablations: choose of {', '.join(known)}")
    return [Row(name, runs) for name in names if not tables or _table(name) in tables]


def markdown(rows: Sequence[Row]) -> str:
    """All rows as a table, the paper's figure beside ours; below it what the runs have otherwise than their configs."""
    lines = ["| row | top-1 | paper | state | run |", "|---|---|---|---|---|"]
    for row in rows:
        ours, paper = (f"{value:.1f}" if value is not None else "" for value in (row.top1(), row.paper))
        lines.append(f"| {row.title} | {ours} | {paper} | {row.stage().value} | {row.name} |")
    changed: dict[str, list[str]] = {}
    for name, changes in {name: changes for row in rows for name, changes in row.changes().items()}.items():
        changed.setdefault(changes, []).append(name)
    notes = [f"Not as configured: {changes} in {', '.join(names)}." for changes, names in changed.items()]
    notes += sorted({f"Not counted: {reason}." for row in rows if (reason := row.foreign())})
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def _table(name: str) -> str:
    return Path(name).name.partition("_")[0].removeprefix("table")


def _in_order(names: Sequence[str]) -> list[str]:
    """Sorted by the number of the table, then by name."""

    def key(name: str) -> tuple[int, str]:
        digits = re.match(r"\d+", _table(name))
        return int(digits[0]) if digits else 0, name

    return sorted(names, key=key)

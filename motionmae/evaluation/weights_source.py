"""Find out what weights a path names: a run, a checkpoint, an export, a folder of transformers, or a released file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from motionmae.checkpointing.huggingface_folder import CONFIG, WEIGHTS, weight_files
from motionmae.checkpointing.load_weights import newest_checkpoint
from motionmae.config import load_config
from motionmae.config.load import known_configs
from motionmae.config.trees import parse_yaml
from motionmae.errors import UserError
from motionmae.evaluation.export_folder import FACTS
from motionmae.json_text import read_limited
from motionmae.runs.checkpoint_manifest import MANIFEST, STATE
from motionmae.runs.directory import RunFolder
from motionmae.text import excerpt

FORMS = "a run, a checkpoint folder, an export, a Hugging Face VideoMAE folder or a released file (docs/use/weights.md)"
_SETTABLE = ("clip.", "model.", "test.")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Kind(Enum):
    """Form of weights."""

    CHECKPOINT = "checkpoint"
    EXPORT = "export"
    HUGGINGFACE = "Hugging Face folder"
    FILE = "file"


@dataclass(frozen=True)
class WeightsSource:
    """Weights in one place, which stay the same if a run saves meanwhile."""

    path: Path  # folder of a checkpoint, an export or a model of transformers, or a file
    kind: Kind
    run: Path | None = None  # folder of the run that wrote the checkpoint, if the checkpoint lies in it
    settings: Mapping[str, Any] = field(default_factory=dict)  # changes of the model's config, by `section.key`
    class_names: tuple[str, ...] = ()  # given for weights that do not name their classes

    @property
    def name(self) -> str:
        """Name for messages and folders of results."""
        found = self.run or self.path
        return found.resolve().name if found.is_dir() else found.stem

    @property
    def results(self) -> Path:
        """Folder for results: the run, or `results/NAME` in the working directory, since weights may be read-only."""
        return self.run or Path("results") / self.name


def find_weights(
    name: str | Path, step: int | str | None = None, settings: Sequence[str] = (), classes: Path | None = None
) -> WeightsSource:
    """Return the weights at ``name``: a path, or the config of a run. A run gives its newest checkpoint.

    Args:
        step: step of the checkpoint of a run.
        settings: changes `section.key=value` of the clip, the model, the test or `data.sampling`.
        classes: text file with the name of a class on each line.

    Raises:
        UserError: there are no weights, ``step`` is given and ``name`` is no run, or a setting or ``classes`` is wrong.
    """
    found = _find(name, step)
    names = read_class_names(classes) if classes else ()
    return replace(found, settings=_parse_settings(settings), class_names=names)


def run_of(name: str | Path) -> Path | None:
    """Return the run folder that ``name`` means, without a look at its checkpoints; None for other weights."""
    path = _path_of(name)
    return path if RunFolder(path).config.is_file() else None


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one on each line, in the order of the logits."""
    try:
        lines = read_limited(path, 1 << 24).decode().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as class names ({error}): give a text file, one name on a line"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def _parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not (key.startswith(_SETTABLE) or key == "data.sampling"):
            raise UserError(
                f"--set {excerpt(text)} is not possible: write clip.KEY=VALUE, model.KEY=VALUE, test.KEY=VALUE or "
                "data.sampling=VALUE"
            )
        try:
            settings[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {excerpt(text)} is not possible: the value is not readable YAML") from error
    return settings


def _path_of(name: str | Path) -> Path:
    path = Path(name).expanduser()
    if not path.exists() and str(name) in known_configs():
        path = load_config(str(name)).run_folder
        if not path.exists():
            raise UserError(f"the run of the config {name} does not exist at {path}: train it, or give {FORMS}")
    return path


def _find(name: str | Path, step: int | str | None) -> WeightsSource:
    path = _path_of(name)
    if path.name in WEIGHTS and ((path.parent / FACTS).is_file() or (path.parent / CONFIG).is_file()):
        path = path.parent
    if RunFolder(path).config.is_file():
        return WeightsSource(newest_checkpoint(RunFolder(path), step).folder, Kind.CHECKPOINT, path)
    if step is not None:
        raise UserError(f"--step {step} chooses a checkpoint of a run, and {path} is not a run folder: leave it out")
    if (path / MANIFEST).is_file() and (path / STATE).is_file():
        run = path.absolute().parents[1]
        is_in_run = path.absolute().parent == RunFolder(run).checkpoints and RunFolder(run).config.is_file()
        return WeightsSource(path, Kind.CHECKPOINT, path.parents[1] if is_in_run and len(path.parts) > 2 else None)
    if (path / FACTS).is_file():
        return WeightsSource(path, Kind.EXPORT)
    if path.is_dir() and weight_files(path):
        return WeightsSource(path, Kind.HUGGINGFACE if (path / CONFIG).is_file() else Kind.FILE)
    if path.is_file():
        return WeightsSource(path, Kind.FILE)
    raise UserError(_describe_missing(path, str(name)))


def _describe_missing(path: Path, name: str) -> str:
    if path.is_dir():
        kind = "shards" if (path / MANIFEST).is_file() else "no weights"
        return f"{path} is not a run folder and holds {kind}: give {FORMS}"
    if _HUB_NAME.fullmatch(name):
        return (
            f"there are no weights at {path}: give {FORMS}; for a model of the Hugging Face hub, first run "
            f"`hf download {name} --local-dir FOLDER` and give FOLDER"
        )
    return f"there are no weights at {path}: give {FORMS}"

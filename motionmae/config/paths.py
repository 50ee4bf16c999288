"""Absolute paths in a configuration: a job runs in another working directory than the command that submits it."""

from collections.abc import Callable
from pathlib import Path

from motionmae.config.schema import Config
from motionmae.config.section import marks_of
from motionmae.config.trees import flat

_UNCHANGED: dict[str, Callable[[str], bool]] = {
    "local": lambda value: False,
    "node": lambda value: value.startswith("$"),  # only the node knows a variable such as $TMPDIR
    "url": lambda value: "://" in value,
    "weights": lambda value: value == "scratch",
}
"""By kind of path (:mod:`motionmae.config.section`): values that are not relative paths."""


def absolute_paths(config: Config) -> Config:
    values = flat(config.model_dump())
    kinds = {key: marks["path"] for key, marks in marks_of(Config).items() if "path" in marks}
    paths = {key: values[key] for key, kind in kinds.items() if values[key] and not _UNCHANGED[kind](values[key])}
    return config.updated({key: str(Path(path).expanduser().resolve()) for key, path in paths.items()})

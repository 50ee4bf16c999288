"""Absolute paths in a configuration: a job runs in another working directory than the command that submits it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from motionmae.config.schema import Config
from motionmae.config.section import Section

Part = TypeVar("Part", bound=Section)

_UNCHANGED: dict[Any, Callable[[str], bool]] = {
    "local": lambda value: False,
    "node": lambda value: value.startswith("$"),  # a variable such as $TMPDIR, which only the node knows
    "url": lambda value: "://" in value,
    "weights": lambda value: value == "scratch",
}
"""By kind of path field (:mod:`motionmae.config.section`): values that are not relative paths."""


def absolute_paths(config: Config) -> Config:
    """A copy whose path fields are absolute."""
    return _absolute(config)


def _absolute(section: Part) -> Part:
    changes: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        kind = field.json_schema_extra.get("path") if isinstance(field.json_schema_extra, dict) else None
        if isinstance(value, Section):
            changes[name] = _absolute(value)
        elif kind and value and not _UNCHANGED[kind](value):
            changes[name] = str(Path(value).expanduser().resolve())
    return section.model_copy(update=changes)

"""Comparison of a run's saved settings with those of a resume: fields marked MAY_CHANGE may differ."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from motionmae.config.schema import Config
from motionmae.config.trees import flat
from motionmae.errors import UserError


def _marked(schema: type[BaseModel], prefix: str = "", inherited: str = "") -> Iterator[tuple[str, str]]:
    """Every key and its ``on_resume`` mark; a section's mark holds for its fields without a mark."""
    for name, field in schema.model_fields.items():
        extra = field.json_schema_extra
        mark = str(extra.get("on_resume", inherited)) if isinstance(extra, dict) else inherited
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _marked(field.annotation, f"{prefix}{name}.", mark)
        else:
            yield f"{prefix}{name}", mark


_MARKS = dict(_marked(Config))

RESULT_KEYS = frozenset(key for key, mark in _MARKS.items() if mark != "may_change")
"""Keys that a run's results depend on."""


def differing_settings(saved: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Keys that a resume may not change and that differ, with the saved and the new value.

    Args:
        saved: a config's ``model_dump(mode="json")``. A key that it lacks had its default.
    """
    before = {**flat(Config().model_dump(mode="json")), **flat(saved)}
    now = flat(config.model_dump(mode="json"))
    return {key: (before[key], now[key]) for key, mark in _MARKS.items() if not mark and before[key] != now[key]}


def check_same_run(saved: dict[str, Any], config: Config) -> None:
    """Refuse to resume from a checkpoint of other settings; see :func:`differing_settings`.

    Raises:
        UserError: naming the keys and both values.
    """
    if differing := differing_settings(saved, config):
        changes = ", ".join(f"{key}={now} (was {then})" for key, (then, now) in differing.items())
        raise UserError(
            f"{config.output_dir}/{config.name} was trained with other settings and cannot be resumed with {changes}: "
            "restore the old values, or start another run with name=..."
        )

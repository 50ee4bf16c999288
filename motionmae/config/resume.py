"""Comparison of a run's saved settings with the resuming command's. Fields marked MAY_CHANGE may differ."""

from typing import Any

from motionmae.config.schema import Config
from motionmae.config.section import marks_of
from motionmae.config.trees import flat
from motionmae.errors import UserError

_ON_RESUME = {key: marks.get("on_resume") for key, marks in marks_of(Config).items()}

RESULT_KEYS = frozenset(key for key, mark in _ON_RESUME.items() if mark != "may_change")
"""Keys that a run's results depend on."""


def check_same_run(saved: dict[str, Any], config: Config) -> None:
    """Raise UserError, with keys and both values, if a resume would change settings that must stay.

    Args:
        saved: a config's ``model_dump(mode="json")``. A key that it lacks had its default.
    """
    before = {**flat(Config().model_dump(mode="json")), **flat(saved)}
    now = flat(config.model_dump(mode="json"))
    differing = [key for key, mark in _ON_RESUME.items() if not mark and before[key] != now[key]]
    if differing:
        changes = ", ".join(f"{key}={now[key]} (was {before[key]})" for key in differing)
        raise UserError(
            f"{config.output_dir}/{config.name} was trained with other settings and cannot be resumed with {changes}: "
            "restore the old values, or start a different run with name=..."
        )

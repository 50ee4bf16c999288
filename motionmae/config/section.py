"""Base class and field types of the configuration schema.

A field states its type, limits and meaning::

    epochs: PositiveInt = 1600
    threads: Annotated[PositiveInt, MAY_CHANGE] = 2

A rule for one field is part of its type. A rule for several fields is a validator of their section, and a rule for
several sections is a validator of :class:`motionmae.config.Config`; both call :func:`check`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from motionmae.errors import UserError


class Section(BaseModel):
    """A part of the configuration: immutable, and without unknown keys or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

LocalPath = Annotated[str, Field(json_schema_extra={"path": "local"})]
"""A path on the file system that all nodes share."""
NodePath = Annotated[str, Field(json_schema_extra={"path": "node"})]
"""A path that may begin with a variable of the node, for example $TMPDIR."""
PathOrUrl = Annotated[str, Field(json_schema_extra={"path": "url"})]
WeightsPath = Annotated[str, Field(json_schema_extra={"path": "weights"})]
"""A path, or ``scratch``."""

MAY_CHANGE = Field(json_schema_extra={"on_resume": "may_change"})
"""A resumed run may change the field, or all fields of the section. Results do not depend on it."""
MAY_CHANGE_RESULT = Field(json_schema_extra={"on_resume": "may_change_result"})
"""A resumed run may change the field, but its results depend on it."""


def only_for(task: str) -> object:
    """Mark a section that only runs of ``task`` read."""
    return Field(json_schema_extra={"task": task})


def marks_of(schema: type[BaseModel], prefix: str = "", inherited: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The marks of every ``section.key``, in the schema's order. Marks of a section hold for its fields too."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        own = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        marks = {**(inherited or {}), **own}
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= marks_of(field.annotation, f"{prefix}{name}.", marks)
        else:
            found[f"{prefix}{name}"] = marks
    return found


def check(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise a :class:`UserError` unless ``holds``; ``allowed`` describes the values that are possible."""
    if not holds:
        raise UserError(f"{key}={value} is not possible: {allowed}")

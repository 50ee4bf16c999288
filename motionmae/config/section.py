"""Base class and field types of the configuration schema.

A field states its type, limits and meaning::

    epochs: PositiveInt = 1600
    threads: Annotated[PositiveInt, MAY_CHANGE] = 2

The type of a field checks its value. :meth:`Section.check` compares the fields of a section, or the sections of
:class:`motionmae.config.Config`, and raises :func:`refusal`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from motionmae.config.text_types import check_path, one_line, without_password
from motionmae.errors import UserError


class Section(BaseModel):
    """Part of the configuration: immutable, and without unknown keys or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Check every text, because a config is untrusted and its values are printed, logged or opened."""
        if isinstance(value, str) and info.field_name is not None:
            marks = cls.model_fields[info.field_name].json_schema_extra
            without_password(one_line(value))
            if isinstance(marks, dict) and "path" in marks:
                check_path(value, str(marks["path"]))
        return value

    @model_validator(mode="after")
    def _validate(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Raise UserError if fields do not fit together."""


Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

LocalPath = Annotated[str, Field(json_schema_extra={"path": "local"})]
"""Path on the file system that all nodes share."""
NodePath = Annotated[str, Field(json_schema_extra={"path": "node"})]
"""Path with variables of the node, for example $TMPDIR (:func:`motionmae.config.text_types.node_path`)."""
PathOrUrl = Annotated[str, Field(json_schema_extra={"path": "url"})]
WeightsPath = Annotated[str, Field(json_schema_extra={"path": "weights"})]
"""Path, or ``scratch``."""

MAY_CHANGE = Field(json_schema_extra={"on_resume": "may_change"})
"""Mark of a field, or of a section with all its fields, that a resumed run may change. Results do not depend on it."""
MAY_CHANGE_RESULT = Field(json_schema_extra={"on_resume": "may_change_result"})
"""Mark of a field or section that a resumed run may change although results depend on it."""


def only_for(task: str) -> object:
    """Mark a section that only runs of ``task`` read."""
    return Field(json_schema_extra={"task": task})


def marks_of(schema: type[BaseModel], prefix: str = "", inherited: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the marks of every ``section.key`` in the schema's order. Fields inherit the marks of their section."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        own = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        marks = {**(inherited or {}), **own}
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= marks_of(field.annotation, f"{prefix}{name}.", marks)
        else:
            found[f"{prefix}{name}"] = marks
    return found


def refusal(key: str, value: object, allowed: str) -> UserError:
    """Return the error for a ``value`` that is not possible; ``allowed`` describes the possible values."""
    return UserError(f"{key}={value} is not possible: {allowed}")

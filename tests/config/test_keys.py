"""Every config key: its default, limits and marks as written out in keys.txt, and who reads it."""

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from motionmae.config import Config
from motionmae.config.data import SourceConfig
from motionmae.config.section import Section, marks_of

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("keys.txt")
"""One line a key. A change of a default, a limit or a mark is a change of this table too."""
MARKS = ("on_resume", "task", "path")


def leaves(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def limits(field: FieldInfo) -> dict[str, Any]:
    """Return the limits of a number, by their name in pydantic."""
    found = [*field.metadata]
    for part in get_args(field.annotation):  # of a union
        found += getattr(part, "__metadata__", ())
    names = {Gt: "gt", Ge: "ge", Lt: "lt", Le: "le"}
    inner = [m for each in found for m in (getattr(each, "metadata", None) or [each])]
    return {names[type(each)]: getattr(each, names[type(each)]) for each in inner if type(each) in names}


def line(key: str, field: FieldInfo, marks: dict[str, Any]) -> str:
    shown = [f"{name} {value}" for name, value in limits(field).items()]
    choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
    shown += ["of " + " ".join(choices)] if choices else []
    shown += [f"{mark} {marks[mark]}" for mark in MARKS if mark in marks]
    return "; ".join([f"{key} = {field.default!r}", *shown])


def test_every_key_has_the_default_limits_and_marks_of_the_table():
    marks = marks_of(Config)
    found = [line(key, field, marks[key]) for key, field in leaves(Config)]
    assert found == TABLE.read_text().splitlines()


def close_by(name: str, limit: float, whole: bool) -> tuple[float, float]:
    """Return a value that the limit allows, and the nearest one that it refuses."""
    up = 1 if name in ("gt", "ge") else -1
    step = (lambda x, way: x + way) if whole else (lambda x, way: math.nextafter(x, math.inf * way))
    return (step(limit, up), limit) if name in ("gt", "lt") else (limit, step(limit, -up))


BOUNDED = [(key, field, *limit) for key, field in leaves(Config) for limit in limits(field).items()]


@pytest.mark.parametrize(("key", "field", "name", "limit"), BOUNDED, ids=[f"{b[0]} {b[2]}" for b in BOUNDED])
def test_limits_hold_from_both_sides(key: str, field: FieldInfo, name: str, limit: float):
    adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
    whole = field.annotation is not float
    allowed, refused = close_by(name, limit, whole)
    if key != "mask.decoder_ratio":
        assert adapter.validate_python(allowed) == allowed
    with pytest.raises(ValidationError):
        adapter.validate_python(refused)


ALIASES = {
    "model": ("size", "dimensions"),
    "checkpoint": ("_keep", "conditions"),
    "watchdog": ("limits",),
    "monitoring": ("settings",),
    "source": ("one",),
}
"""Further names under which the program holds a section."""
BY_NAME = {"launch.partition", "launch.account", "launch.qos", "launch.constraint", "launch.comment"}
"""Keys that slurm/sbatch.py passes on to options of the same names."""


def pairs_read() -> set[tuple[str, str]]:
    """Return (section, key) for every ``section.key`` that the program reads as an attribute."""
    read = set()
    for package in ("motionmae", "slurm", "monitoring"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = node.value
                    name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                    read.add((name, node.attr))
    return read


def test_no_key_is_read_by_nobody():
    read = pairs_read()
    keys = [key for key, _ in leaves(Config)] + [f"source.{name}" for name in SourceConfig.model_fields]
    unread = set()
    for key in keys:
        section, _, name = key.rpartition(".")
        owners = (section or "config", "self", *ALIASES.get(section, ()))
        if not any((owner, name) in read for owner in owners):
            unread.add(key)
    assert unread == BY_NAME

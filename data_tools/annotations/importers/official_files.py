"""Official annotation files: which file holds a split, JSON with a schema, and classes with their numbers."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from data_tools.annotations.lists import LIST_BYTES
from data_tools.annotations.split_names import ALIASES
from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError, load_json

Schema = TypeVar("Schema")


def official_part(split: str | None, parts: Mapping[str, str], title: str) -> str:
    """Return the data set's own name of a split; ``parts`` maps train, val and test to it.

    Raises UserError if ``split`` is no usual name of one of them.
    """
    for name, part in parts.items():
        if split in (part, *ALIASES[name]):
            return part
    *others, last = dict.fromkeys(parts.values())
    raise UserError(f"--split {split} is not a split of {title}: choose {', '.join(others)} or {last}")


def find_official(annotations: Path, *names: str) -> Path:
    """Return the first of ``names`` in or beside ``annotations``, or in the folder ``annotations/`` or ``labels/``."""
    folder = annotations.parent if annotations.is_file() else annotations
    for path in (parent / name for name in names for parent in (folder, folder / "annotations", folder / "labels")):
        if path.is_file():
            return path
    raise UserError(f"{folder} has no {names[0]}: give the folder of the official files as --annotations")


def read_official_json(file: Path, schema: type[Schema]) -> Schema:
    try:
        return load_json(file, schema, LIST_BYTES)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions and its disk") from error
    except InvalidJsonError as error:
        raise UserError(f"{file} is not a JSON file of the data set ({error}): download it again") from error


def split_cells(line: str) -> list[str]:
    """Return the stripped cells of a line with commas; the whole line if its quotes are wrong."""
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error:
        return [line]


def class_names_of(file: Path, numbers: Mapping[str, int]) -> tuple[str, ...]:
    """Return the class names in the order of their numbers. Raises UserError unless these are 0, 1, 2, ..."""
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise UserError(f"{file} does not number its classes 0, 1, 2, ...: download the official file again")
    return tuple(sorted(numbers, key=numbers.__getitem__))

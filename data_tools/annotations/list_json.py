"""Lists in JSON and JSON lines: records, arrays, maps from videos to labels, and what pandas writes (``to_json``)."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from data_tools.annotations.split_names import split_of
from motionmae.data.video.read_video import VIDEO_SUFFIXES
from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError, parse_json

Columns = tuple[str, ...]
Entries = list[tuple[str, ...]]
IsTitle = Callable[[Collection[str]], bool]

_SUFFIXES = (".json", ".jsonl", ".ndjson")
_WRAPPERS = ("data", "videos", "annotations", "samples", "items", "clips", "database", "rows")
_LIMIT = 1 << 30  # bytes, above the limit of a list: UTF-16 grows as UTF-8


def read_json_table(path: Path, text: str, is_title: IsTitle) -> tuple[Columns, Entries] | None:
    """Return the columns and the entries of a list in JSON; None if the list is not JSON.

    Args:
        is_title: whether keys are names of columns, and not those of videos.

    Raises UserError if the file is called .json or .jsonl and is no JSON, or is JSON but no list of videos.
    """
    is_called_json = path.suffix.lower() in _SUFFIXES
    start = text.lstrip()[:1]
    if not is_called_json and start not in ("[", "{"):
        return None
    try:
        content = _parse(text)
    except InvalidJsonError as error:
        if is_called_json:
            raise UserError(f"{path} is not JSON ({error}): correct it, or name the file .txt or .csv") from error
        return None
    records = _find_records(path, content, is_title)
    if not records:
        return (), []
    if all(isinstance(record, dict) for record in records):
        columns = tuple(dict.fromkeys(key for record in records for key in record))
        if not columns:
            raise UserError(f"{path} holds objects without keys: give each entry the keys path and label")
        return columns, [tuple(_cell(record.get(key)) for key in columns) for record in records]
    if all(isinstance(record, list) and len(record) == len(records[0]) for record in records):
        return _array_columns(path, records), [tuple(map(_cell, row)) for row in records]
    if all(isinstance(record, str) for record in records):
        return ("path",), [(record,) for record in records]
    raise UserError(f"{path} mixes entries of several forms: give each entry the keys path and label")


def _parse(text: str) -> Any:
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return parse_json(raw, Any, _LIMIT)
    except InvalidJsonError as error:
        lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]
        if len(lines) < 2 or lines[0][1].strip()[-1:] not in (b"}", b"]", b'"'):
            raise
        rows = []
        for number, line in lines:
            try:
                rows.append(parse_json(line, Any, _LIMIT))
            except InvalidJsonError as wrong:
                raise InvalidJsonError(f"line {number}: {wrong}") from error
        return rows


def _find_records(path: Path, content: Any, is_title: IsTitle) -> list[Any]:
    """Return the entries of a document of any usual form."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise UserError(f"{path} is JSON, but no list of videos: give an array of objects with path and label")
    if {"columns", "data"} <= content.keys():  # pandas, orient="split"
        names, rows = content["columns"], content["data"]
        if isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows):
            return [dict(zip(map(str, names), row, strict=False)) for row in rows]
    if {"schema", "data"} <= content.keys() and isinstance(content["data"], list):  # pandas, orient="table"
        return content["data"]
    if not content:
        return []
    values = list(content.values())
    if is_title(content) and not any(map(_holds_maps, values)):  # JSON lines with one line
        return [content]
    if values and all(map(split_of, content)):
        return _records_of_splits(path, content, is_title)
    if values and all(isinstance(value, dict) for value in values):
        return _records_of_maps(path, content)
    if values and all(_is_list_of_names(value) for value in values):
        return [{"path": name, "label": label} for label, names in content.items() for name in names]
    if values and all(value is None or isinstance(value, str | int | float) for value in values):
        return [{"path": name, "label": label} for name, label in content.items()]
    splits = {key: value for key, value in content.items() if split_of(key) and isinstance(value, list | dict)}
    if splits:  # beside other keys, such as the names of the classes
        return _records_of_splits(path, splits, is_title)
    lists = [key for key in _WRAPPERS if isinstance(content.get(key), list | dict)]
    if len(lists) == 1:
        return _find_records(path, content[lists[0]], is_title)
    keys = ", ".join(list(map(str, content))[:5])
    raise UserError(f"{path} is a JSON object with the keys {keys[:200]}: give an array of objects with path and label")


def _records_of_maps(path: Path, content: dict[str, dict[str, Any]]) -> list[Any]:
    """Read pandas' default ({"path": {"0": ...}}), its orient="index", and {"VIDEO": {"label": ...}}."""
    values = list(content.values())
    rows = list(values[0])
    if rows and all(list(column) == rows for column in values) and all(re.fullmatch("[0-9]+", row) for row in rows):
        return [{name: column[row] for name, column in content.items()} for row in rows]
    if all(re.fullmatch("[0-9]+", key) for key in content):
        return values
    if any("path" in value for value in values):
        return values
    return [{"path": name, **value} for name, value in content.items()]


def _records_of_splits(path: Path, content: dict[str, Any], is_title: IsTitle) -> list[Any]:
    """Read {"train": ..., "val": ...}: the key becomes the column ``split`` of its entries."""
    records: list[Any] = []
    for key, value in content.items():
        for record in _find_records(path, value, is_title):
            named = {"path": record} if isinstance(record, str) else record
            if not isinstance(named, dict):
                raise UserError(f"{path}: the entries of {key} are no objects: give each the keys path and label")
            records.append({**named, "split": key})
    return records


def _holds_maps(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and _is_name(name) for name in value)


def _is_name(text: str) -> bool:
    return text.lower().endswith(tuple(VIDEO_SUFFIXES))


def _array_columns(path: Path, rows: Sequence[Sequence[Any]]) -> Columns:
    """Return the columns of arrays: [VIDEO, LABEL] or [LABEL, VIDEO], if the extensions tell which is which."""
    width = len(rows[0])
    named = [
        column for column in range(width) if all(isinstance(row[column], str) and _is_name(row[column]) for row in rows)
    ]
    if width <= 2 and len(named) == 1:
        return tuple("path" if column == named[0] else "label" for column in range(width))
    raise UserError(f"{path} holds arrays whose values have no names: give objects with the keys path and label")


def _cell(value: Any) -> str:
    """Return a value as text. An array of one value is the value."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)[:1000]  # 3, 2.0, true, NaN

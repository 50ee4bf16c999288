"""Lines of a list without a header: a name that may hold blanks and commas, with values before or after it.

A line can often be split in several ways. :func:`split_line` returns all of them, and the files on the disk decide.
"""

import contextlib
import csv
import re
from collections.abc import Iterator
from typing import NamedTuple

from motionmae.data.video.read_video import VIDEO_SUFFIXES

SEPARATORS = (",", "\t", ";", "|")
"""Separators besides blanks."""
NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?|nan", re.IGNORECASE)
_SUFFIXES = "|".join(sorted(re.escape(suffix[1:]) for suffix in VIDEO_SUFFIXES))
_NAME_END = re.compile(rf"""\.(?:{_SUFFIXES})(?=["']?(?:[ \t,;|]|$))""", re.IGNORECASE)
_LONGEST = 4096 + 1024  # bytes of a path and a label; longer lines are split in one way only


class LineSplit(NamedTuple):
    """One way to split a line."""

    before: tuple[str, ...]  # values before the name, such as a label or a row number
    name: str  # name of the video
    after: tuple[str, ...]  # values after the name


def has_video_name(line: str) -> bool:
    """Return whether a part of the line ends in the extension of a video."""
    return _NAME_END.search(line[:_LONGEST]) is not None


def split_line(line: str) -> list[LineSplit]:
    """Return all ways to split a line, the most likely first."""
    if len(line) > _LONGEST:
        return [LineSplit((), line, ())]
    ends = [found.end() for found in _NAME_END.finditer(line)]
    ways = _split_at_extensions(line, ends) if ends else _split_without_extension(line)
    return list(dict.fromkeys(way for way in ways if way.name)) or [LineSplit((), line, ())]


def _split_at_extensions(line: str, ends: list[int]) -> Iterator[LineSplit]:
    cells = [_cells(line, separator) for separator in SEPARATORS if separator in line]
    if line[0] in "\"'":
        yield from _split_in_cells(cells)
    for end in reversed(ends):
        name, rest = line[:end], line[end:]
        if name[0] in "\"'":
            name = name[1:].replace('""', '"') if name[0] == '"' else name[1:]
            rest = rest[1:] if rest[:1] == line[0] else rest
        yield LineSplit((), name, _values(rest))
    yield from _split_in_cells(cells)
    first, _, rest = line.partition(" ")
    if NUMBER.fullmatch(first) and rest:
        yield from (LineSplit((first, *way.before), way.name, way.after) for way in split_line(rest.strip()))


def _split_in_cells(candidates: list[list[str]]) -> Iterator[LineSplit]:
    for cells in candidates:
        number = next((number for number, cell in enumerate(cells) if has_video_name(cell)), None)
        if number is not None:
            yield LineSplit(tuple(cells[:number]), cells[number], _without_empty_end(cells[number + 1 :]))


def _split_without_extension(line: str) -> Iterator[LineSplit]:
    for separator in SEPARATORS:
        if separator in line:
            name, *after = _cells(line, separator)
            yield LineSplit((), name, _without_empty_end(after))
    words = line.split(" ")
    for count in range(min(4, len(words) - 1), 0, -1):
        if all(map(NUMBER.fullmatch, words[-count:])):
            yield LineSplit((), _unquoted(" ".join(words[:-count]).rstrip()), tuple(words[-count:]))
    yield LineSplit((), _unquoted(line), ())
    name, _, label = line.rpartition(" ")
    yield LineSplit((), _unquoted(name.rstrip()), (label,))


def _values(text: str) -> tuple[str, ...]:
    """Return the values after a name. Values between blanks are numbers; other words are one value."""
    stripped = text.strip()
    for separator in SEPARATORS:
        if stripped.startswith(separator):
            return _without_empty_end(_cells(stripped[1:], separator))
    if "\t" in stripped:
        return _without_empty_end(_cells(stripped, "\t"))
    words = stripped.split()
    if all(map(NUMBER.fullmatch, words)):
        return tuple(words)
    if NUMBER.fullmatch(words[0]):
        return (words[0], " ".join(words[1:]))
    if NUMBER.fullmatch(words[-1]):
        return (" ".join(words[:-1]), words[-1])
    return (_unquoted(stripped),)


def _cells(text: str, separator: str) -> list[str]:
    cells = text.split(separator)
    if '"' in text:
        with contextlib.suppress(csv.Error, ValueError):
            (cells,) = csv.reader([text], delimiter=separator, skipinitialspace=True)
    return [_unquoted(cell.strip()) for cell in cells]


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _without_empty_end(cells: list[str]) -> tuple[str, ...]:
    while cells and not cells[-1]:
        cells = cells[:-1]
    return tuple(cells)

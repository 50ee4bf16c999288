"""Meaning of a list: which value of a row is the video, which the label, and which rows belong to a split.

Where a list can be read in two ways, it is refused with the line, or a note says which way was taken and why.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from data_tools.annotations.list_lines import NUMBER, LineSplit, has_video_name, split_line
from data_tools.annotations.lists import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    WITHOUT_LABEL,
    Row,
    Table,
    read_table,
)
from data_tools.annotations.split_names import split_of
from motionmae.errors import UserError
from motionmae.text import excerpt

Finder = Callable[[str], Path | None]
"""Returns the video file of a name; None if it does not exist."""

OFFICIAL = (
    (frozenset({"youtube_id", "time_start", "time_end"}), "Kinetics", "'k400' (or 'k600', 'k700')"),
    (frozenset({"annotations", "subset"}), "Kinetics or ActivityNet", "'k400' or 'activitynet'"),
    (frozenset({"youtube_id", "classname", "subset"}), "HACS Clips", "'hacs_clips'"),
    (frozenset({"narration_id", "verb_class"}), "EPIC-KITCHENS-100", "'epic_verbs' (or 'epic_nouns')"),
    (frozenset({"vid_name", "start_frame"}), "Diving48", "'diving48'"),
    (frozenset({"id", "template"}), "Something-Something", "'ssv2'"),
)
"""Columns of official lists, the data set, and what to use on the command line."""
_WINDOWS = (
    ("start", "end"),
    ("start_time", "end_time"),
    ("time_start", "time_end"),
    ("start_frame", "end_frame"),
    ("start_frame", "stop_frame"),
    ("start_sec", "end_sec"),
    ("t_start", "t_end"),
    ("begin", "end"),
    ("start_timestamp", "stop_timestamp"),
    ("start_timestamp", "end_timestamp"),
    ("start_seconds", "end_seconds"),
)
_FOLD_COLUMN = re.compile(r"(?:k_?)?folds?|(?:is_?)?(?:train|training|val|valid|validation|test)")
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_REMEDY = "write each line as 'path label', or add a header with the columns path and label"
_SAMPLE = 50  # rows whose files decide between two columns


@dataclass(frozen=True)
class Entry:
    """Row of a list: a video and its label."""

    source: str  # as the list writes it
    path: Path | None  # None if the file does not exist
    label: str  # number or name; empty if the video has none
    class_name: str  # from a second column; mostly empty
    where: str  # place in the list, for messages


@dataclass(frozen=True)
class VideoList:
    """Entries of a list, and sentences on what was guessed."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def read_video_list(file: Path, split: str | None, find: Finder, is_file: Callable[[str], bool]) -> VideoList:
    """Read a list. If it has a column ``split``, only the rows of ``split`` are returned.

    Args:
        find: the search for a video, also by its name without extension.
        is_file: whether a first line that looks like a header is the exact name of a video.

    Raises UserError if the list cannot be read, or can be read in several ways.
    """
    table = read_table(file, is_file)
    entries, notes = _from_columns(table, split, find) if table.columns else _from_lines(table, find)
    named = tuple(entry for entry in entries if entry.source)
    if len(named) < len(entries):
        first = next(entry.where for entry in entries if not entry.source)
        notes = (*notes, f"rows without a video are left out: {len(entries) - len(named)}, first {first}")
    return VideoList(named, (*table.notes, *notes))


def _from_columns(table: Table, split: str | None, find: Finder) -> tuple[list[Entry], tuple[str, ...]]:
    columns = table.columns
    for official, name, dataset in OFFICIAL:
        if official <= set(columns):
            raise UserError(f"{table.path} is a list of {name}: use the data set {dataset} instead of 'folder'")
    for pair in _WINDOWS:
        if set(pair) <= set(columns):
            _refuse_windows(f"{table.path} lists parts of videos ({' and '.join(pair)})")
    rows, notes = _choose_split(table, split)
    path, path_note = _choose_path(table, rows, find)
    label, class_name = _choose_labels(table, rows, path)
    notes = (*notes, *path_note)
    entries = []
    for row in rows:
        source = row.cells[path]
        text = "" if label is None else row.cells[label]
        name = "" if class_name is None else row.cells[class_name]
        entries.append(Entry(source, find(source), text, name, table.where(row)))
    return entries, notes


def _refuse_windows(problem: str) -> None:
    remedy = "cut the videos first (ffmpeg -ss START -to END), and list the cut files as path,label"
    raise UserError(f"{problem}, which the data set 'folder' does not cut: {remedy}")


def _choose_split(table: Table, split: str | None) -> tuple[Sequence[Row], tuple[str, ...]]:
    """Return the rows of a split, if the list has a column that names the split of each row."""
    column = next((table.columns.index(name) for name in SPLIT_COLUMNS if name in table.columns), None)
    if column is None:
        if split and split_of(split) != split_of(table.path.stem):
            _refuse_unknown_splits(table, split)
        return table.rows, ()
    values = Counter(_split_name(row.cells[column]) for row in table.rows)
    title, there = table.columns[column], ", ".join(excerpt(name, 20) for name in sorted(values)[:6])
    if split is None or (len(values) == 1 and "" in values):
        if len(values) > 1:
            return table.rows, (f"the column {title!r} of {table.path} is ignored: choose one of {there} with --split",)
        return table.rows, ()
    wanted = _split_name(split)
    if wanted not in values:
        raise UserError(f"the column {title!r} of {table.path} has no {split}, only {there}: choose another --split")
    rows = [row for row in table.rows if _split_name(row.cells[column]) == wanted]
    if len(rows) == len(table.rows):
        return rows, ()
    return rows, (f"{len(rows)} of the {len(table.rows)} rows of {table.path} have {split} in the column {title!r}",)


def _refuse_unknown_splits(table: Table, split: str) -> None:
    """Raise UserError if a column such as ``is_train`` or ``fold`` tells the splits, but not by their names."""
    for number, title in enumerate(table.columns):
        if _FOLD_COLUMN.fullmatch(title) and len({row.cells[number] for row in table.rows}) > 1:
            remedy = f"add a column split with names such as {split}, or delete the column {title}"
            raise UserError(f"{table.path} has a column {title}, and it is not clear which rows are {split}: {remedy}")


def _split_name(text: str) -> str:
    return split_of(text) or text.strip().lower()


def _choose_path(table: Table, rows: Sequence[Row], find: Finder) -> tuple[int, tuple[str, ...]]:
    """Return the column of the videos. Of several candidates, the one whose files exist is taken."""
    candidates = [table.columns.index(name) for name in PATH_COLUMNS if name in table.columns]
    if not candidates:
        titles = ", ".join(excerpt(name, 30) for name in table.columns[:6])
        raise UserError(f"{table.path} has the columns {titles}, but none with the videos: rename it to path")
    if len(candidates) == 1:
        return candidates[0], ()
    sample = rows[:_SAMPLE]
    hits = {column: sum(find(row.cells[column]) is not None for row in sample) for column in candidates}
    best = max(candidates, key=lambda column: hits[column])
    others = [table.columns[column] for column in candidates if column != best and hits[column] == hits[best]]
    if not others:
        return best, ()
    rather = f"{table.columns[best]}, not {' or '.join(others)}"
    return best, (f"the videos of {table.path} are read from its column {rather}",)


def _choose_labels(table: Table, rows: Sequence[Row], path: int) -> tuple[int | None, int | None]:
    """Return the column of the labels and that of their names; None if there is none.

    Two columns are a number and its name if each number has one name. Other pairs are refused.
    """
    found = [column for column, name in enumerate(table.columns) if name in LABEL_COLUMNS and column != path]
    if not found:
        others = [name for n, name in enumerate(table.columns) if n != path and name not in PATH_COLUMNS]
        unknown = [name for name in others if not WITHOUT_LABEL.fullmatch(name)]
        if unknown:
            header = excerpt(",".join(table.columns), 80)
            remedy = "rename the label column to label, or delete the other columns if there are no labels"
            raise UserError(f"{table.path}: the header {header!r} has no column 'label': {remedy}")
        return None, None
    if len(found) == 1:
        return found[0], None
    texts = {column: [row.cells[column] for row in rows] for column in found}
    numbers = [column for column in found if all(NUMBER.fullmatch(text) or not text for text in texts[column])]
    names = [column for column in found if column not in numbers]
    if len(numbers) == 1 and len(names) == 1:
        pairs = set(zip(texts[numbers[0]], texts[names[0]], strict=True))
        if len(pairs) == len({number for number, _ in pairs}) == len({name for _, name in pairs}):
            return numbers[0], names[0]
    if len({tuple(column) for column in texts.values()}) == 1:
        return found[0], None
    titles = " and ".join(table.columns[column] for column in found)
    raise UserError(f"{table.path} has several columns of labels, {titles}: keep one and delete the others")


def _from_lines(table: Table, find: Finder) -> tuple[list[Entry], tuple[str, ...]]:
    """Read lines without a header. Files that exist decide how a line is split, and the majority for other lines."""
    found = [_first_existing(row.cells[0], find) for row in table.rows]
    table, found, notes_on_header = _without_header(table, found)
    shapes = Counter(_shape(way) for way, _ in filter(None, found))
    usual = shapes.most_common(1)[0][0] if shapes else None
    lines = []
    for row, existing in zip(table.rows, found, strict=True):
        way, path = existing or (_choose_way(row.cells[0], usual), None)
        lines.append(_Line(way, path, table.where(row)))
    labels, notes = _labels_of(table.path, lines)
    pairs = zip(lines, labels, strict=True)
    return [Entry(line.way.name, line.path, label, "", line.where) for line, label in pairs], (*notes_on_header, *notes)


_Found = list[tuple[LineSplit, Path] | None]


def _without_header(table: Table, found: _Found) -> tuple[Table, _Found, tuple[str, ...]]:
    """Leave out a first line that is a header, because it alone has neither a file, an extension nor a number."""
    first = table.rows[0].cells[0] if table.rows else ""
    ways = split_line(first)
    has_number = any(NUMBER.fullmatch(value) for way in ways for value in (way.name, *way.after))
    if len(found) < 2 or found[0] or not all(found[1:]) or has_video_name(first) or has_number:
        return table, found, ()
    taken = f"the first line of {table.path}, {excerpt(first, 60)!r}, is taken for a header"
    note = f"{taken}, because it alone names no video that exists"
    return replace(table, rows=table.rows[1:]), found[1:], (note,)


class _Line(NamedTuple):
    """Line of a list without a header."""

    way: LineSplit
    path: Path | None
    where: str

    @property
    def values(self) -> tuple[str, ...]:
        return (*self.way.before, *self.way.after)


def _first_existing(line: str, find: Finder) -> tuple[LineSplit, Path] | None:
    for way in split_line(line):
        if (path := find(way.name)) is not None:
            return way, path
    return None


def _choose_way(line: str, usual: tuple[int, int] | None) -> LineSplit:
    ways = split_line(line)
    return next((way for way in ways if _shape(way) == usual), ways[0])


def _shape(way: LineSplit) -> tuple[int, int]:
    return len(way.before), len(way.after)


def _labels_of(file: Path, lines: Sequence[_Line]) -> tuple[list[str], tuple[str, ...]]:
    """Return the label of each line, which is empty for a line that only names a video."""
    for line in lines:
        if any(map(has_video_name, line.values)):
            raise UserError(f"{line.where} names several videos: {_REMEDY}")
    labelled = {_shape(line.way): line for line in reversed(lines) if line.values}  # the first of each form
    if not labelled:
        return [""] * len(lines), ()
    if len(labelled) > 1:
        one, other = list(labelled.values())[:2]
        numbers = f"have {len(one.values)} and {len(other.values)} values beside the video, or in another order"
        raise UserError(f"{one.where} and {other.where} {numbers}: {_REMEDY}")
    ((shape, first),) = labelled.items()
    if shape == (0, 2):
        return _labels_of_pairs(file, lines, first.where)
    if shape == (0, 3) and all(map(NUMBER.fullmatch, first.values)):
        _refuse_windows(f"{first.where} has three numbers after the video, as lists of parts of videos do")
    last = [line.values[-1] if line.values else "" for line in lines]
    if shape == (0, 1):
        return last, ()
    if shape == (1, 0):
        return last, (f"the label is before the video in each line of {file}",)
    if shape == (1, 1) and _counts_up([line.values[0] for line in lines if line.values]):
        return last, (f"the first value of each line of {file} is taken for a row number, and the last for the label",)
    problem = f"has {len(first.values)} values beside the video, and it is not clear which is the label"
    raise UserError(f"{first.where} {problem}: {_REMEDY}")


def _counts_up(texts: Sequence[str]) -> bool:
    """Return whether the values are row numbers: 0, 1, 2, ... or 1, 2, 3, ..."""
    return list(texts) in ([str(start + number) for number in range(len(texts))] for start in (0, 1))


def _labels_of_pairs(file: Path, lines: Sequence[_Line], where: str) -> tuple[list[str], tuple[str, ...]]:
    """Read ``path 0 -1`` (pre-training lists of VideoMAE V2) and ``path FRAMES LABEL`` (lists of raw frames).

    The first number is the number of frames if it is above 1 in every line and above the second in some line.
    Otherwise it may be a label, a first frame or the number of frames, and the list is refused.
    """
    pairs = [line.way.after for line in lines if line.way.after]
    if set(pairs) == {("0", "-1")}:
        return [""] * len(lines), (f"{file} has lines 'path 0 -1' (VideoMAE V2): the videos have no label",)
    form = f"path {excerpt(pairs[0][0], 20)} {excerpt(pairs[0][1], 20)}"
    are_numbers = all(_WHOLE.fullmatch(value) for pair in pairs for value in pair)
    numbers = [(int(first), int(second)) for first, second in pairs] if are_numbers else []
    are_frames = all(first > 1 for first, _ in numbers) and any(first > second > -1 for first, second in numbers)
    if not are_frames:
        raise UserError(f"{where} has the form {form!r}, and it is not clear which value is the label: {_REMEDY}")
    taken = "the first number is taken for the number of frames, and the second for the label"
    return [line.way.after[1] if line.way.after else "" for line in lines], (f"{file} has lines {form!r}: {taken}",)

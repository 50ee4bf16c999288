"""Read any folder of videos. Labels come from lists or from class folders; a flat folder has no labels.

* Lists ``train.csv``, ``val.csv``, ``test.csv`` (or ``.txt``), or one given file. Lines are "path label", "path,label"
  or "path" as in VideoMAE and PySlowFast, but a path may contain blanks. A csv may have the header path,label. Labels
  are numbers, or names that are numbered alphabetically. If the folder of the list contains
  ``classInd.txt`` with lines "number name", that file names the numbers.
* Class folders ``CLASS/.../video`` or ``SPLIT/CLASS/.../video``. Classes are numbered alphabetically.
* A flat folder. The videos have no label.
"""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data_tools.annotations.class_tree import read_class_tree
from data_tools.annotations.split import UNLABELLED, Split, VideoRecord, read_lines
from motionmae.data.video import VIDEO_SUFFIXES
from motionmae.errors import UserError
from motionmae.files import hash_files

SPLITS = ("train", "val", "valid", "validation", "test")
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MAX_CLASSES = 1_000_000


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    """Read one split, or all splits if ``split`` is None; see :func:`data_tools.annotations.read_split`."""
    if annotations.is_file():
        return _from_lists(videos, [annotations], split or annotations.stem)
    lists = _find_lists(annotations, split)
    if lists:
        return _from_lists(videos, lists, split or ("all" if len(lists) > 1 else lists[0].stem))
    other_lists = _find_lists(annotations, None)
    if annotations != videos or (other_lists and not (videos / str(split)).is_dir()):
        there = f", only {' and '.join(path.name for path in other_lists)}" if other_lists else ""
        raise UserError(f"{annotations} has no {split or 'train'}.csv or .txt{there}: give the list as --annotations")
    return read_class_tree(videos, split, exclude)


def _find_lists(folder: Path, split: str | None) -> list[Path]:
    """Find the list of one split, or the lists of all splits. A csv is preferred to a txt of the same name."""
    candidates = [(folder / f"{name}.csv", folder / f"{name}.txt") for name in ([split] if split else SPLITS)]
    return [next(path for path in pair if path.is_file()) for pair in candidates if any(map(Path.is_file, pair))]


def _from_lists(videos: Path, files: Sequence[Path], split: str) -> Split:
    entries = [entry for file in files for entry in _read_list(file)]
    class_of_number = _read_class_names(files[0].parent) or _read_class_names(videos)
    if all(_NUMBER.fullmatch(label) for _, label in entries if label):
        numbers = {label: int(label) for _, label in entries if label}
    else:
        class_of_number = class_of_number or dict(enumerate(sorted({label for _, label in entries if label})))
        numbers = {name: number for number, name in class_of_number.items()}
        for source, label in entries:
            if label and label not in numbers:
                raise UserError(f"{files[0]}: classInd.txt lacks the class {label!r} of {source}: add the class there")
    records = []
    for source, label in entries:
        exists = os.path.exists(videos / source)  # noqa: PTH110 - Path.exists would raise for an unreadable folder
        number = numbers.get(label, UNLABELLED)
        class_name = class_of_number.get(number, "" if number < 0 else label)
        records.append(VideoRecord(source, videos / source if exists else None, number, class_name))
    count = 1 + max([UNLABELLED, *class_of_number, *(record.label for record in records)])
    if count > _MAX_CLASSES:
        raise UserError(f"{files[0]}: label {count - 1} is not a class number: put the class last in each line")
    names = tuple(class_of_number.get(number, str(number)) for number in range(count))
    description = " and ".join(map(str, files))
    return Split(tuple(records), names, split, description, ", ".join(file.name for file in files), hash_files(files))


def _read_list(file: Path) -> list[tuple[str, str]]:
    """Return (path, label text or "") for each line of a list."""
    lines = read_lines(file)
    header = [cell.strip().lower() for cell in lines[0].split(",")] if lines else []
    if "path" in header:
        if len(header) > 1 and "label" not in header:
            raise UserError(f"{file}: the header {lines[0]!r} has no column 'label': rename the label column")
        rows = csv.DictReader(lines[1:], fieldnames=header)
        try:
            return [((row["path"] or "").strip(), (row.get("label") or "").strip()) for row in rows]
        except csv.Error as error:
            raise UserError(f"{file} is not a csv file ({error}): correct line {rows.line_num + 1}") from error
    return [_parse_line(line) for line in lines if not line.startswith("#")]


def _parse_line(line: str) -> tuple[str, str]:
    cuts = [line.rpartition(separator) for separator in ("\t", ",", " ")]
    for source, _, label in cuts:
        if Path(source.strip('" ')).suffix.lower() in VIDEO_SUFFIXES:
            return source.strip('" '), label.strip()
    for source, _, label in cuts:  # no known video extension: a number at the end of the line is the label
        if source and _NUMBER.fullmatch(label.strip()):
            return source.strip('" '), label.strip()
    return line, ""


def _read_class_names(folder: Path) -> dict[int, str]:
    """Read ``classInd.txt``, which has a class number (as in the lists, from 0 or 1) and a name per line."""
    file = folder / "classInd.txt"
    if not file.is_file():
        return {}
    names = {}
    for line in read_lines(file):
        number, _, name = line.partition(" ")
        if not _NUMBER.fullmatch(number) or not name:
            raise UserError(f"{file}: the line {line!r} is not 'NUMBER NAME': correct the line")
        names[int(number)] = name.strip()
    return names

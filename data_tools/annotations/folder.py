"""Any folder of videos: described by "path label" lists, by its class folders, or not at all.

* Lists ``train.csv``, ``val.csv``, ``test.csv`` (or ``.txt``), or one given file: lines "path label", "path,label" or
  "path" (VideoMAE's and PySlowFast's lists; here a path may hold blanks), or a csv with the header path,label. Labels
  are numbers, or names, which are then numbered alphabetically. ``classInd.txt`` ("number name") beside it names the
  numbers.
* Class folders ``CLASS/.../video``, or ``SPLIT/CLASS/.../video``; classes are numbered alphabetically.
* A flat folder: its videos have no label.
"""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data_tools.annotations.split import UNLABELLED, Split, VideoRecord, read_lines, walk_files
from motionmae.data.video import VIDEO_SUFFIXES
from motionmae.errors import UserError
from motionmae.files import hash_files

SPLITS = ("train", "val", "valid", "validation", "test")
NOT_VIDEOS = frozenset(
    {
        *(".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
        *(
            ".csv",
            ".idx",
            ".json",
            ".jsonl",
            ".npy",
            ".npz",
            ".pickle",
            ".pkl",
            ".srt",
            ".tsv",
            ".vtt",
            ".xls",
            ".xlsx",
            ".xml",
        ),
        *(".bib", ".doc", ".docx", ".htm", ".html", ".log", ".md", ".pdf", ".rst", ".tex", ".txt"),
        *(".cfg", ".css", ".ini", ".ipynb", ".py", ".sh", ".toml", ".yaml", ".yml"),
        *(".part", ".tar", ".torrent", ".zip"),
    }
)
"""Files of a folder with these endings are passed over (and named in the summary); all others are tried."""

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MOST_CLASSES = 1_000_000


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    """Read one split, or all there is where ``split`` is None; see :func:`data_tools.annotations.read_split`."""
    if annotations.is_file():
        return _from_lists(videos, [annotations], split or annotations.stem)
    lists = _lists(annotations, split)
    if lists:
        return _from_lists(videos, lists, split or ("all" if len(lists) > 1 else lists[0].stem))
    others = _lists(annotations, None)
    if annotations != videos or (others and not (videos / str(split)).is_dir()):
        there = f" beside {' and '.join(path.name for path in others)}" if others else ""
        raise UserError(f"{annotations} has no {split or 'train'}.csv or .txt{there}: name the list by --annotations")
    return _from_tree(videos, split, exclude)


def _lists(folder: Path, split: str | None) -> list[Path]:
    """The list of a split, or those of all splits; a csv counts before a txt of the same name."""
    candidates = [(folder / f"{name}.csv", folder / f"{name}.txt") for name in ([split] if split else SPLITS)]
    return [next(path for path in pair if path.is_file()) for pair in candidates if any(map(Path.is_file, pair))]


def _from_lists(videos: Path, files: Sequence[Path], split: str) -> Split:
    entries = [entry for file in files for entry in _read_list(file)]
    numbered = all(_NUMBER.fullmatch(label) for _, label in entries if label)
    named = _class_ind(files[0].parent) or _class_ind(videos)
    if numbered:
        numbers = {label: int(label) for _, label in entries if label}
    else:
        named = named or dict(enumerate(sorted({label for _, label in entries if label})))
        numbers = {name: number for number, name in named.items()}
        _refuse_unknown(entries, numbers, files)
    rows = []
    for source, label in entries:
        there = os.path.exists(videos / source)  # noqa: PTH110 - Path.exists raises where a folder is not readable
        number = numbers.get(label, UNLABELLED)
        class_name = named.get(number, "" if number < 0 else label)
        rows.append(VideoRecord(source, videos / source if there else None, number, class_name))
    count = 1 + max([UNLABELLED, *named, *(row.label for row in rows)])
    if count > _MOST_CLASSES:
        raise UserError(f"{files[0]} has the label {count - 1}, which is no class number: put the class last in a line")
    names = tuple(named.get(number, str(number)) for number in range(count))
    described = " and ".join(map(str, files))
    return Split(tuple(rows), names, split, described, ", ".join(file.name for file in files), hash_files(files))


def _refuse_unknown(entries: Sequence[tuple[str, str]], numbers: dict[str, int], files: Sequence[Path]) -> None:
    for source, label in entries:
        if label and label not in numbers:
            raise UserError(f"{files[0]}: the class {label!r} of {source} is not in classInd.txt: add it there")


def _read_list(file: Path) -> list[tuple[str, str]]:
    """(path, label as written or "") of each line."""
    lines = read_lines(file)
    header = [cell.strip().lower() for cell in lines[0].split(",")] if lines else []
    if "path" in header:
        if len(header) > 1 and "label" not in header:
            raise UserError(f"{file} has the header {lines[0]!r} without a column 'label': name the label column so")
        records = csv.DictReader(lines[1:], fieldnames=header)
        return [(record["path"].strip(), (record.get("label") or "").strip()) for record in records]
    return [_read_line(line) for line in lines if not line.startswith("#")]


def _read_line(line: str) -> tuple[str, str]:
    cuts = [line.rpartition(separator) for separator in ("\t", ",", " ")]
    for source, _, label in cuts:
        if Path(source.strip('" ')).suffix.lower() in VIDEO_SUFFIXES:
            return source.strip('" '), label.strip()
    for source, _, label in cuts:  # a name without a known ending: a number at the end is the label
        if source and _NUMBER.fullmatch(label.strip()):
            return source.strip('" '), label.strip()
    return line, ""


def _class_ind(folder: Path) -> dict[int, str]:
    """``classInd.txt``: number and name a line, numbered as the lists are (from 0 or 1)."""
    file = folder / "classInd.txt"
    if not file.is_file():
        return {}
    names = {}
    for line in read_lines(file):
        number, _, name = line.partition(" ")
        if not _NUMBER.fullmatch(number) or not name:
            raise UserError(f"{file}: the line {line!r} is not 'NUMBER NAME'")
        names[int(number)] = name.strip()
    return names


def _from_tree(videos: Path, split: str | None, exclude: Path | None) -> Split:
    root = videos / split if split and (videos / split).is_dir() else videos
    found: list[Path] = []
    passed_over: list[Path] = []
    for path in walk_files(root, exclude):
        (passed_over if path.suffix.lower() in NOT_VIDEOS else found).append(path)
    classes = sorted({path.relative_to(root).parts[0] for path in found if path.parent != root})
    if root == videos and classes and set(classes) <= set(SPLITS):
        raise UserError(f"{videos} holds the splits {', '.join(classes)}: say one of them by --split")
    numbers = {name: number for number, name in enumerate(classes)}
    rows = []
    for path in found:
        top, *below = path.relative_to(root).parts
        class_name = top if below else ""
        source = path.relative_to(videos).as_posix()
        rows.append(VideoRecord(source, path, numbers.get(class_name, UNLABELLED), class_name))
    others = tuple(path.relative_to(videos).as_posix() for path in passed_over)
    return Split(tuple(rows), tuple(classes), split or "all", str(root), passed_over=others)

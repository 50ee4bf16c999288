"""Read the csv files of Kinetics-400, 600 and 700 as DeepMind, ActivityNet and the CVDF publish them.

The columns are label, youtube_id, time_start, time_end, split[, is_cc]. A test file may have no labels. A video file is
named ``YTID_000012_000022.mp4`` (start and end second, also without zeros or as decimals) or ``YTID.mp4``, in class
folders or in one flat folder. A file in ``replacement*`` is used before the one that it replaces.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data_tools.annotations.lists import read_lines, read_table
from data_tools.annotations.split import UNLABELLED, Split, visible_files
from data_tools.annotations.split_names import split_of
from data_tools.annotations.video_index import VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files

CLASSES = (400, 600, 700)
"""Numbers of classes of the versions. Kinetics-700 and its edition of 2020 have the same classes."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test"}
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_COLUMNS = {"youtube_id", "time_start", "time_end"}


def reader(classes: int) -> Callable[[Path, Path, str | None, Path | None], Split]:
    """Return the reader of the version with ``classes`` classes."""
    return partial(_read, classes)


def _read(classes: int, videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    if split not in SPLITS:
        raise UserError(f"--split {split} is not a split of Kinetics-{classes}: choose train, val or test")
    split = SPLITS[split]
    file = annotations if annotations.is_file() else _find_csv(annotations, split)
    all_rows = _read_clips(file)
    rows, left_out = _choose_split(file, all_rows, split)
    class_names, notes = _read_class_names(file, classes, [row.get("label", "") for row in all_rows])
    label_of = {name: label for label, name in enumerate(class_names)}
    named = [(_clip_name(row), row["youtube_id"]) for row in rows]
    index = VideoIndex(videos, exclude, [stem for stems in named for stem in stems])
    records = []
    for row, stems in zip(rows, named, strict=True):
        text = row.get("label", "")
        name = text if text in label_of else text.replace("_", " ")
        if name and name not in label_of:
            raise UserError(f"{file}: the folder's label map has no class {name!r}: remove one of the two files")
        path = f"{text}/{stems[0]}.mp4" if text else f"{stems[0]}.mp4"
        label = label_of[name] if name else UNLABELLED
        records.append(index.record(stems, [name] if name else [], path, label, name, split))
    return Split(
        tuple(records), class_names, split, str(file), file.name, hash_files([file]), notes=(*left_out, *notes)
    )


def _clip_name(row: Mapping[str, str]) -> str:
    """Return the official name of a clip, which has whole seconds."""
    seconds = (row["time_start"], row["time_end"])
    times = [f"{int(float(text)):06d}" if float(text).is_integer() else text for text in seconds]
    return "_".join([row["youtube_id"], *times])


def _find_csv(folder: Path, split: str) -> Path:
    """Find the file of a split. Kinetics-600 of the CVDF has ``train.txt``, and a second test csv that is held out."""
    found: list[Path] = []
    for pattern in ("*.csv", "*.txt"):
        words = {path: re.split("[-_]", path.stem.lower()) for path in visible_files(folder, pattern)}
        found = found or [p for p, last in words.items() if SPLITS.get(last[-1]) == split and "holdout" not in last]
    if len(found) != 1:
        count = f"{len(found)} csv files" if found else "no csv file"
        names = f"kinetics-400_{split}.csv of the ActivityNet crawler, {split}.csv of the CVDF"
        raise UserError(f"{folder} has {count} of the split {split}: give the file itself as --annotations ({names})")
    return found[0]


def _read_clips(file: Path) -> list[dict[str, str]]:
    table = read_table(file)
    if not set(table.columns) >= _COLUMNS:
        problem = f"{file} has no header with {', '.join(sorted(_COLUMNS))} and is not an official Kinetics csv"
        raise UserError(f"{problem}: use the data set 'folder' for a 'path label' list")
    clips = table.records
    for row, clip in zip(table.rows, clips, strict=True):
        if not (_SECONDS.fullmatch(clip["time_start"]) and _SECONDS.fullmatch(clip["time_end"])):
            raise UserError(f"{table.where(row)}: time_start and time_end must be seconds, as 12 or 12.5")
    return clips


def _choose_split(
    file: Path, rows: Sequence[dict[str, str]], split: str
) -> tuple[Sequence[dict[str, str]], tuple[str, ...]]:
    """Return the rows without those that the column ``split`` gives to another split, and a note on these."""
    chosen = [row for row in rows if split_of(row.get("split", "")) in (None, split)]
    if rows and not chosen:
        raise UserError(f"{file} has no rows of the split {split}, only {rows[0]['split']}: give the file of {split}")
    count = len(rows) - len(chosen)
    return chosen, (f"{count} of the {len(rows)} rows of {file} are of other splits and are left out",) if count else ()


def _read_class_names(file: Path, classes: int, labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return class names in label order, from a label map or from all Kinetics csvs of the folder, and notes.

    ``labels`` are those of ``file``, which is not read again.
    """
    folder = file.parent
    label_maps = visible_files(folder, "label_map*.txt")
    if label_maps:
        chosen = next((path for path in label_maps if str(classes) in path.stem), label_maps[0])
        return tuple(name.replace("_", " ") for name in read_lines(chosen)), ()
    names = set(labels)
    for path in (path for path in visible_files(folder, "*.csv") if path != file):
        with contextlib.suppress(UserError):  # another file of the user
            table = read_table(path)
            if {*_COLUMNS, "label"} <= set(table.columns):
                names |= {row["label"] for row in table.records}
    names.discard("")
    count = len(names)
    if count == classes:
        return tuple(sorted(names)), ()
    if count in CLASSES:
        note = f"the csv files in {folder} name {count} classes, as Kinetics-{count} has: give the data set k{count}"
    else:
        note = (
            f"the csv files in {folder} name {count} of the {classes} classes of Kinetics, numbered alphabetically; "
            f"add the train and val files (or label_map_k{classes}.txt) to give every split the same numbers"
        )
    return tuple(sorted(names)), (note,)

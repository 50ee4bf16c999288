"""Read Kinetics-400's ``kinetics-400_{train,val,test}.csv`` as ActivityNet and the CVDF publish them.

The columns are label, youtube_id, time_start, time_end, split[, is_cc]. A test file may have no labels. A video file is
named ``YTID_000012_000022.mp4`` (start and end second) or ``YTID.mp4``, in class folders or in one flat folder.
"""

import re
from pathlib import Path

from data_tools.annotations.lists import read_lines, read_table
from data_tools.annotations.split import UNLABELLED, Split, VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files

CLASSES = 400
SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_SECONDS = re.compile(r"[0-9]{1,9}")
_COLUMNS = {"youtube_id", "time_start", "time_end"}


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    if split not in SPLITS:
        raise UserError(f"--split {split} is not a split of Kinetics-400: choose train, val or test")
    split = SPLITS[split]
    file = annotations if annotations.is_file() else _find_csv(annotations, split)
    rows = _read_clips(file)
    class_names, notes = _read_class_names(file.parent, [row.get("label") or "" for row in rows])
    label_of = {name: label for label, name in enumerate(class_names)}
    index = VideoIndex(videos, exclude)
    records = []
    for row in rows:
        name = (row.get("label") or "").strip()
        if name and name not in label_of:
            raise UserError(f"{file}: the folder's label map has no class {name!r}: remove one of the two files")
        clip = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        folders = (name, split) if name else (split,)
        path = f"{name}/{clip}.mp4" if name else f"{clip}.mp4"
        label = label_of[name] if name else UNLABELLED
        records.append(index.record((clip, row["youtube_id"]), folders, path, label, name))
    return Split(tuple(records), class_names, split, str(file), file.name, hash_files([file]), notes=notes)


def _find_csv(folder: Path, split: str) -> Path:
    last_words = {path: path.stem.lower().replace("_", "-").split("-")[-1] for path in sorted(folder.glob("*.csv"))}
    found = [path for path, word in last_words.items() if SPLITS.get(word) == split]
    if len(found) != 1:
        count = f"{len(found)} csv files" if found else "no csv file"
        names = f"kinetics-400_{split}.csv of the ActivityNet crawler, {split}.csv of the CVDF"
        raise UserError(f"{folder} has {count} of the split {split}: give the file itself as --annotations ({names})")
    return found[0]


def _read_csv(file: Path) -> tuple[set[str], list[dict[str, str]]]:
    """Return the columns and the rows of a csv file."""
    table = read_table(file)
    return set(table.columns), table.records


def _read_clips(file: Path) -> list[dict[str, str]]:
    columns, rows = _read_csv(file)
    if not columns >= _COLUMNS:
        problem = f"{file} has no header with {', '.join(sorted(_COLUMNS))} and is not an official Kinetics csv"
        raise UserError(f"{problem}: use the data set 'folder' for a 'path label' list")
    for line, row in enumerate(rows, start=2):
        if not all(_SECONDS.fullmatch((row[column] or "").strip()) for column in ("time_start", "time_end")):
            raise UserError(f"{file}, line {line}: time_start and time_end must be whole seconds")
    return rows


def _read_class_names(folder: Path, labels: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return class names in label order, from a label map or from all Kinetics csvs of the folder, and notes."""
    label_maps = sorted(folder.glob("label_map*.txt"))
    if label_maps:
        return tuple(read_lines(label_maps[0])), ()
    names = {name.strip() for name in labels}
    for path in sorted(folder.glob("*.csv")):
        try:
            columns, rows = _read_csv(path)
        except UserError:  # another file of the user
            continue
        if columns >= {*_COLUMNS, "label"}:
            names |= {(row["label"] or "").strip() for row in rows}
    names.discard("")
    if len(names) == CLASSES:
        return tuple(sorted(names)), ()
    note = (
        f"the csv files in {folder} name {len(names)} of the {CLASSES} classes of Kinetics, numbered alphabetically; "
        "add the train and val files (or label_map_k400.txt) to give every split the same numbers"
    )
    return tuple(sorted(names)), (note,)

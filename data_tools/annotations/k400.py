"""Kinetics-400: ``kinetics-400_{train,val,test}.csv`` as ActivityNet and the CVDF publish them.

Columns label, youtube_id, time_start, time_end, split[, is_cc]; the test file may come without labels. A clip is named
``YTID_000012_000022.mp4`` (start and end second) or ``YTID.mp4``, under class folders or flat.
"""

import csv
from pathlib import Path

from data_tools.annotations.split import UNLABELLED, Split, VideoIndex, read_lines
from motionmae.errors import UserError
from motionmae.files import hash_files

CLASSES = 400
SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_COLUMNS = {"youtube_id", "time_start", "time_end"}


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    """Read one split; see :func:`data_tools.annotations.read_split`."""
    if split not in SPLITS:
        raise UserError(f"--split {split} is none of Kinetics-400's: choose train, val or test")
    split = SPLITS[split]
    file = annotations if annotations.is_file() else _split_file(annotations, split)
    try:
        records = _read_csv(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no UTF-8 csv file ({error}): get the official file again") from error
    class_names, notes = _class_names(file.parent, [record.get("label") or "" for record in records])
    label_of = {name: label for label, name in enumerate(class_names)}
    index = VideoIndex(videos, exclude)
    rows = []
    for record in records:
        name = (record.get("label") or "").strip()
        if name and name not in label_of:
            raise UserError(f"{file}: the label {name!r} is not in the label map beside it: remove one of the two")
        clip = f"{record['youtube_id']}_{int(record['time_start']):06d}_{int(record['time_end']):06d}"
        folders = (name, split) if name else (split,)
        path = "/".join((*folders[:-1], f"{clip}.mp4"))
        label = label_of[name] if name else UNLABELLED
        rows.append(index.row((clip, record["youtube_id"]), folders, path, label, name))
    return Split(tuple(rows), class_names, split, str(file), file.name, hash_files([file]), notes=notes)


def _split_file(folder: Path, split: str) -> Path:
    words = {word for word, meant in SPLITS.items() if meant == split}
    found = [path for path in sorted(folder.glob("*.csv")) if _last_word(path) in words]
    if len(found) != 1:
        what = "no csv file" if not found else f"{len(found)} csv files"
        raise UserError(
            f"{folder} has {what} of the split {split}: give --annotations the file itself "
            f"(kinetics-400_{split}.csv of the ActivityNet crawler, {split}.csv of the CVDF)"
        )
    return found[0]


def _last_word(path: Path) -> str:
    return path.stem.lower().replace("_", "-").split("-")[-1]


def _read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if not set(reader.fieldnames or ()) >= _COLUMNS:
            raise UserError(
                f"{file} has no header with {', '.join(sorted(_COLUMNS))}, so it is no official Kinetics csv: "
                "use the data set 'folder' for a 'path label' list"
            )
        records = list(reader)
    for number, record in enumerate(records, start=2):
        if not all((record[column] or "").strip().isdigit() for column in ("time_start", "time_end")):
            raise UserError(f"{file}, line {number}: time_start and time_end must be whole seconds")
    return records


def _class_names(folder: Path, own: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names in label order, that is alphabetical: from a label map, or from all Kinetics csvs of the folder."""
    label_maps = sorted(folder.glob("label_map*.txt"))
    if label_maps:
        return tuple(read_lines(label_maps[0])), ()
    names = {name.strip() for name in own}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if set(reader.fieldnames or ()) >= {*_COLUMNS, "label"}:
                names |= {(record["label"] or "").strip() for record in reader}
    names.discard("")
    if len(names) == CLASSES:
        return tuple(sorted(names)), ()
    note = (
        f"the csv files in {folder} name {len(names)} of Kinetics' {CLASSES} classes, numbered alphabetically: "
        "put the train and val files there (or label_map_k400.txt) so that every split gets the same numbers"
    )
    return tuple(sorted(names)), (note,)

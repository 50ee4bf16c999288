"""Read EPIC-KITCHENS-100: ``EPIC_100_{train,validation}.csv`` with the classes of verbs or of nouns.

A row is an action, which is cut from the video as ``NARRATION_ID.mp4`` (docs/data/data_sets.md). The classes are in
``EPIC_100_verb_classes.csv`` and ``EPIC_100_noun_classes.csv`` (or ``_v2``), with the columns id and key. The actions
of ``EPIC_100_test_timestamps.csv`` have no classes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_tools.annotations.importers.official_files import class_names_of, find_official, official_part
from data_tools.annotations.lists import read_table
from data_tools.annotations.split import UNLABELLED, Split
from data_tools.annotations.video_index import VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files


def reader(word: str) -> Callable[[Path, Path, str | None, Path | None], Split]:
    """Return the reader for the classes of ``word``: ``verb`` or ``noun``."""
    return partial(_read, word)


def _read(word: str, videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    parts = {"train": "train", "val": "validation", "test": "test_timestamps"}
    part = official_part(split, parts, "EPIC-KITCHENS-100")
    file = find_official(annotations, f"EPIC_100_{part}.csv")
    classes_file = find_official(annotations, f"EPIC_100_{word}_classes.csv", f"EPIC_100_{word}_classes_v2.csv")
    class_names = _read_classes(classes_file)
    numbers = {str(number): number for number in range(len(class_names))}
    rows = read_table(file).records
    index = VideoIndex(videos, exclude, [row.get("narration_id", "") for row in rows])
    records = []
    for row in rows:
        text = row.get(f"{word}_class", "")
        if "narration_id" not in row or (text and text not in numbers):
            lacking = f"has no column narration_id, or {classes_file.name} has no class {text!r}"
            raise UserError(f"{file} {lacking}: download both files again")
        label = numbers.get(text, UNLABELLED)
        name, class_name = row["narration_id"], class_names[label] if text else ""
        records.append(index.record([name], [], f"{name}.mp4", label, class_name, part))
    sha256 = hash_files([file, classes_file])
    return Split(tuple(records), class_names, part, str(file), file.name, sha256)


def _read_classes(file: Path) -> tuple[str, ...]:
    rows = read_table(file).records
    if not all(row.get("id", "").isdecimal() and row.get("key") for row in rows):
        raise UserError(f"{file} has no columns id and key with numbers and names: download the official file again")
    return class_names_of(file, {row["key"]: int(row["id"]) for row in rows})

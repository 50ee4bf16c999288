"""Read Something-Something V2's ``something-something-v2-{train,validation,test,labels}.json`` for videos ``ID.webm``.

The class name is the template of an entry without the brackets. The labels file maps class names to numbers, written as
strings. The test file holds only ids. The test labels come from ``test-answers.csv`` ("id;label"), which was published
later, if this file is in the same folder.
"""

import json
from pathlib import Path
from typing import Any

from data_tools.annotations.split import UNLABELLED, Split, VideoIndex, read_lines
from motionmae.errors import UserError
from motionmae.files import hash_files

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    if split not in SPLITS:
        raise UserError(f"--split {split} is not a split of Something-Something: choose train, validation or test")
    split = SPLITS[split]
    file = annotations if annotations.is_file() else _find(annotations, split)
    labels_file = _find(file.parent, "labels")
    try:
        labels = {str(name): int(number) for name, number in _read_json(labels_file, dict).items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{labels_file} is damaged ({error}): download the official file again") from error
    class_names = tuple(sorted(labels, key=labels.__getitem__))
    if sorted(labels.values()) != list(range(len(labels))):
        raise UserError(f"{labels_file} does not number its classes 0, 1, 2, ...: download the official file again")
    answers = _read_answers(file.parent) if split == "test" else {}
    index = VideoIndex(videos, exclude)
    records = []
    for entry in _read_json(file, list):
        if not isinstance(entry, dict) or "id" not in entry:
            raise UserError(f"{file}: the entry {entry!r} has no id: download the official file again")
        video = str(entry["id"])
        name = str(entry.get("template", answers.get(video)) or "").replace("[", "").replace("]", "")
        if name and name not in labels:
            raise UserError(f"{file}: {labels_file} has no class {name!r} (video {video}): download both files again")
        records.append(index.record((video,), (split,), f"{video}.webm", labels.get(name, UNLABELLED), name))
    return Split(tuple(records), class_names, split, str(file), file.name, hash_files([file, labels_file]))


def _find(folder: Path, part: str) -> Path:
    for name in (f"something-something-v2-{part}.json", f"{part}.json"):
        for parent in (folder, folder / "labels"):
            if (parent / name).is_file():
                return parent / name
    raise UserError(f"{folder} has no something-something-v2-{part}.json: give the official folder as --annotations")


def _read_json(file: Path, kind: type) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file ({error}): download the official file again") from error
    if not isinstance(content, kind):
        expected = "object" if kind is dict else "array"
        raise UserError(f"{file} does not hold a JSON {expected}: download the official file again")
    return content


def _read_answers(folder: Path) -> dict[str, str]:
    file = folder / "test-answers.csv"
    if not file.is_file():
        return {}
    return {number: name for number, _, name in (line.partition(";") for line in read_lines(file))}

"""Something-Something V2: ``something-something-v2-{train,validation,test,labels}.json``, videos ``ID.webm``.

A row's template without its brackets is its key in the labels file, which maps it to a number written as a string.
The test file has ids only; ``test-answers.csv`` ("id;label"), published later, is used where it lies beside it.
"""

import json
from pathlib import Path
from typing import Any

from data_tools.annotations.split import UNLABELLED, Split, VideoIndex, read_lines
from motionmae.errors import UserError
from motionmae.files import hash_files

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    """Read one split; see :func:`data_tools.annotations.read_split`."""
    if split not in SPLITS:
        raise UserError(f"--split {split} is none of Something-Something's: choose train, validation or test")
    split = SPLITS[split]
    file = annotations if annotations.is_file() else _find(annotations, split)
    labels_file = _find(file.parent, "labels")
    try:
        labels = {str(name): int(number) for name, number in _load(labels_file, dict).items()}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{labels_file} must map every class to a number ({error}): get the official file again"
        ) from error
    class_names = tuple(sorted(labels, key=labels.__getitem__))
    if sorted(labels.values()) != list(range(len(labels))):
        raise UserError(f"{labels_file} does not number its classes 0, 1, 2, ...: get the official file again")
    answers = _answers(file.parent) if split == "test" else {}
    index = VideoIndex(videos, exclude)
    rows = []
    for record in _load(file, list):
        if not isinstance(record, dict) or "id" not in record:
            raise UserError(f"{file} has the entry {record!r} without an id: get the official file again")
        number = str(record["id"])
        name = str(record.get("template", answers.get(number)) or "").replace("[", "").replace("]", "")
        if name and name not in labels:
            raise UserError(f"{file}: the template of video {number}, {name!r}, is no class of {labels_file.name}")
        rows.append(index.row((number,), (split,), f"{number}.webm", labels.get(name, UNLABELLED), name))
    return Split(tuple(rows), class_names, split, str(file), file.name, hash_files([file, labels_file]))


def _find(folder: Path, what: str) -> Path:
    for name in (f"something-something-v2-{what}.json", f"{what}.json"):
        for parent in (folder, folder / "labels"):
            if (parent / name).is_file():
                return parent / name
    raise UserError(f"{folder} has no something-something-v2-{what}.json: give --annotations the official files")


def _load(file: Path, kind: type) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is no JSON file ({error}): get the official file again") from error
    if not isinstance(content, kind):
        raise UserError(f"{file} does not hold a JSON {kind.__name__}: get the official file again")
    return content


def _answers(folder: Path) -> dict[str, str]:
    file = folder / "test-answers.csv"
    if not file.is_file():
        return {}
    return {number: name for number, _, name in (line.partition(";") for line in read_lines(file))}

"""Read Something-Something V2's ``something-something-v2-{train,validation,test,labels}.json`` for videos ``ID.webm``.

The class name is the template of an entry without the brackets. The labels file maps class names to numbers, written as
strings. The test file holds only ids. The test labels come from ``test-answers.csv`` ("id;label"), which was published
later, if this file is in the same folder.
"""

from pathlib import Path

from pydantic import ConfigDict

from data_tools.annotations.importers.official_files import (
    class_names_of,
    find_official,
    official_part,
    read_official_json,
)
from data_tools.annotations.lists import read_lines
from data_tools.annotations.split import UNLABELLED, Split
from data_tools.annotations.video_index import VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files
from motionmae.json_text import JsonModel


class _Entry(JsonModel):
    """Entry of a list. The lists of train and validation have further keys."""

    model_config = ConfigDict(extra="ignore")

    id: str | int | None = None
    template: str | None = None


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    split = official_part(split, {"train": "train", "val": "validation", "test": "test"}, "Something-Something")
    file = annotations if annotations.is_file() else _find(annotations, split)
    labels_file = _find(file.parent, "labels")
    numbers = read_official_json(labels_file, dict[str, str | int])
    try:
        labels = {name: int(number) for name, number in numbers.items()}
    except ValueError as error:
        raise UserError(f"{labels_file} is damaged ({error}): download the official file again") from error
    class_names = class_names_of(labels_file, labels)
    answers = _read_answers(file.parent) if split == "test" else {}
    index = VideoIndex(videos, exclude)
    records = []
    for number, entry in enumerate(read_official_json(file, list[_Entry])):
        if entry.id is None:
            raise UserError(f"{file}: the entry {number} has no id: download the official file again")
        video = str(entry.id)
        template = entry.template if "template" in entry.model_fields_set else answers.get(video)
        name = (template or "").replace("[", "").replace("]", "")
        if name and name not in labels:
            raise UserError(f"{file}: {labels_file} has no class {name!r} (video {video}): download both files again")
        records.append(index.record((video,), (split,), f"{video}.webm", labels.get(name, UNLABELLED), name))
    return Split(tuple(records), class_names, split, str(file), file.name, hash_files([file, labels_file]))


def _find(folder: Path, part: str) -> Path:
    return find_official(folder, f"something-something-v2-{part}.json", f"{part}.json")


def _read_answers(folder: Path) -> dict[str, str]:
    file = folder / "test-answers.csv"
    if not file.is_file():
        return {}
    return {number: name for number, _, name in (line.partition(";") for line in read_lines(file))}

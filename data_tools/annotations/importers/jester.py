"""Read Jester and Something-Something V1: ``NAME-v1-{train,validation,test,labels}.csv``.

Lines are "ID;CLASS" (test: "ID"). The file of the labels has a class per line, which is numbered by its place. The data
sets come as folders of frames, of which ffmpeg makes videos ``ID.mp4`` (docs/data/data_sets.md).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_tools.annotations.importers.official_files import find_official, official_part
from data_tools.annotations.lists import read_lines
from data_tools.annotations.split import UNLABELLED, Split
from data_tools.annotations.video_index import VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files


def reader(name: str) -> Callable[[Path, Path, str | None, Path | None], Split]:
    """Return the reader of ``NAME-v1-*.csv``, for ``jester`` or ``something-something``."""
    return partial(_read, name)


def _read(title: str, videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part = official_part(split, {"train": "train", "val": "validation", "test": "test"}, title)
    file = find_official(annotations, f"{title}-v1-{part}.csv")
    classes_file = find_official(annotations, f"{title}-v1-labels.csv")
    class_names = tuple(read_lines(classes_file))
    numbers = {name: number for number, name in enumerate(class_names)}
    rows = [[cell.strip() for cell in line.partition(";")[::2]] for line in read_lines(file)]
    index = VideoIndex(videos, exclude, [video for video, _ in rows])
    records = []
    for video, class_name in rows:
        if class_name and class_name not in numbers:
            raise UserError(f"{file}: {classes_file.name} has no class {class_name!r}: download both files again")
        label = numbers.get(class_name, UNLABELLED)
        records.append(index.record([video], [], f"{video}.mp4", label, class_name, part))
    return Split(tuple(records), class_names, part, str(file), file.name, hash_files([file, classes_file]))

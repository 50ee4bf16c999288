"""UCF101: ``ucfTrainTestlist/{classInd,trainlist01,testlist01,...}.txt`` (CRLF, classes numbered from 1).

Train lists end a line with the class number, test lists do not: the class is the folder in either. The files of
``HandstandPushups`` are called ``v_HandStandPushups_*``.
"""

import re
from pathlib import Path

from data_tools.annotations.split import Split, VideoIndex, read_lines
from motionmae.errors import UserError
from motionmae.files import hash_files

_SPLIT = re.compile(r"(train|test|val)(?:list)?0?([123])?")


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    """Read one split; see :func:`data_tools.annotations.read_split`."""
    part, number = parse_split(split)
    split = f"{part}{number}"
    folder = annotations.parent if annotations.is_file() else annotations
    if not (folder / "classInd.txt").is_file() and (folder / "ucfTrainTestlist").is_dir():
        folder /= "ucfTrainTestlist"
    classes_file, file = folder / "classInd.txt", folder / f"{part}list0{number}.txt"
    for needed in (classes_file, file):
        if not needed.is_file():
            raise UserError(f"{needed} does not exist: give --annotations the official ucfTrainTestlist folder")
    class_names = _class_names(classes_file)
    label_of = {name: label for label, name in enumerate(class_names)}
    index = VideoIndex(videos, exclude)
    rows = []
    for line in read_lines(file):
        name, _, stated = line.partition(" ")
        class_name = name.partition("/")[0]
        if class_name not in label_of or (stated and stated != str(label_of[class_name] + 1)):
            raise UserError(f"{file}: the line {line!r} does not agree with {classes_file.name}: get both again")
        rows.append(index.row((Path(name).stem,), (class_name,), name, label_of[class_name], class_name))
    return Split(tuple(rows), class_names, split, str(file), file.name, hash_files([file, classes_file]))


def parse_split(split: str | None) -> tuple[str, int]:
    """("train" or "test", 1 to 3) from train, test, train2, testlist03, ...; without a number it is split 1.

    UCF101 and HMDB51 have no validation lists, and everyone validates on the test lists: val means test.
    """
    match = _SPLIT.fullmatch(split or "")
    if match is None:
        raise UserError(f"--split {split} is none of the official ones: choose train1, test1, ..., train3 or test3")
    return match[1].replace("val", "test"), int(match[2] or 1)


def _class_names(file: Path) -> tuple[str, ...]:
    pairs = [line.split(maxsplit=1) for line in read_lines(file)]
    if [number for number, *_ in pairs] != [str(number) for number in range(1, len(pairs) + 1)]:
        raise UserError(f"{file} does not number its classes 1, 2, 3, ...: get the official file again")
    return tuple(name for _, name in pairs)

"""Read UCF101's ``ucfTrainTestlist/{classInd,trainlist01,testlist01,...}.txt`` (CRLF, classes numbered from 1).

Lines of a train list end with the class number, lines of a test list do not. In both lists the folder of a video is the
class. The files of the class ``HandstandPushups`` are named ``v_HandStandPushups_*``.
"""

import re
from pathlib import Path

from data_tools.annotations.split import Split, VideoIndex, annotation_folder, read_lines
from motionmae.errors import UserError
from motionmae.files import hash_files

_SPLIT = re.compile(r"(train|test|val)(?:list)?0?([123])?")


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part, number = parse_split(split)
    folder = annotation_folder(annotations, "ucfTrainTestlist", "classInd.txt")
    classes_file, file = folder / "classInd.txt", folder / f"{part}list0{number}.txt"
    for required in (classes_file, file):
        if not required.is_file():
            raise UserError(f"{required} does not exist: give the official ucfTrainTestlist folder as --annotations")
    class_names = _read_class_names(classes_file)
    label_of = {name: label for label, name in enumerate(class_names)}
    index = VideoIndex(videos, exclude)
    records = []
    for line in read_lines(file):
        name, _, number_in_list = line.partition(" ")
        class_name = name.partition("/")[0]
        if class_name not in label_of or (number_in_list and number_in_list != str(label_of[class_name] + 1)):
            raise UserError(f"{file}: the line {line!r} contradicts {classes_file.name}: download both files again")
        records.append(index.record((Path(name).stem,), (class_name,), name, label_of[class_name], class_name))
    sha256 = hash_files([file, classes_file])
    return Split(tuple(records), class_names, f"{part}{number}", str(file), file.name, sha256)


def parse_split(split: str | None) -> tuple[str, int]:
    """Parse train, test, train2, testlist03, ... into ("train" or "test", 1 to 3). The default number is 1.

    ``val`` means test: UCF101 and HMDB51 have no validation lists, and published results validate on the test lists.
    """
    match = _SPLIT.fullmatch(split or "")
    if match is None:
        raise UserError(f"--split {split} is not an official split: choose train1, test1, ..., train3 or test3")
    return match[1].replace("val", "test"), int(match[2] or 1)


def _read_class_names(file: Path) -> tuple[str, ...]:
    pairs = [line.split(maxsplit=1) for line in read_lines(file)]
    if [number for number, *_ in pairs] != [str(number) for number in range(1, len(pairs) + 1)]:
        raise UserError(f"{file} does not number its classes 1, 2, 3, ...: download the official file again")
    return tuple(name for _, name in pairs)

"""Read the lists of UCF101 and HMDB51, which both have three official splits.

UCF101 has ``ucfTrainTestlist/{classInd,trainlist01,testlist01,...}.txt`` (CRLF, classes numbered from 1). Lines of a
train list end with the class number, lines of a test list do not. In both lists the folder of a video is the class. The
files of the class ``HandstandPushups`` are named ``v_HandStandPushups_*``.

HMDB51 has ``testTrainMulti_7030_splits/CLASS_test_splitN.txt``, one file per class and split. A line is
"name.avi NUMBER", where 1 means train, 2 test, and 0 neither. Classes are numbered alphabetically, and videos lie in
class folders.
"""

import re
from pathlib import Path

from data_tools.annotations.lists import read_lines
from data_tools.annotations.split import Split, annotation_folder, visible_files
from data_tools.annotations.video_index import VideoIndex
from motionmae.errors import UserError
from motionmae.files import hash_files

_HMDB51_FOLDER = "testTrainMulti_7030_splits"
_SPLIT = re.compile(r"(train|test|val)(?:list)?0?([123])?")


def read_ucf101(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part, number = _parse_split(split)
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


def _parse_split(split: str | None) -> tuple[str, int]:
    """Parse train, test, train2, testlist03, ... into ("train" or "test", 1 to 3). The default number is 1.

    ``val`` means test: UCF101 and HMDB51 have no validation lists, and published results validate on the test lists.
    """
    match = _SPLIT.fullmatch(split or "")
    if match is None:
        raise UserError(f"--split {split} is not an official split: choose train1, test1, ..., train3 or test3")
    return match[1].replace("val", "test"), int(match[2] or 1)


def _read_class_names(file: Path) -> tuple[str, ...]:
    pairs = [([*line.split(maxsplit=1), ""])[:2] for line in read_lines(file)]
    if [number for number, name in pairs if name] != [str(number) for number in range(1, len(pairs) + 1)]:
        raise UserError(f"{file} does not number its classes 1, 2, 3, ...: download the official file again")
    return tuple(name for _, name in pairs)


def read_hmdb51(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part, number = _parse_split(split)
    ending = f"_test_split{number}.txt"
    folder = annotation_folder(annotations, _HMDB51_FOLDER, f"*{ending}")
    files = {path.name.removesuffix(ending): path for path in visible_files(folder, f"*{ending}")}
    if not files:
        raise UserError(f"{folder} has no CLASS{ending}: give the official folder {_HMDB51_FOLDER} as --annotations")
    class_names = tuple(sorted(files))
    index = VideoIndex(videos, exclude)
    records = []
    for label, class_name in enumerate(class_names):
        for line in read_lines(files[class_name]):
            name, mark = _parse_hmdb51_line(line, files[class_name])
            if mark == {"train": "1", "test": "2"}[part]:
                path = f"{class_name}/{name}"
                records.append(index.record((Path(name).stem,), (class_name,), path, label, class_name))
    sha256 = hash_files(files[name] for name in class_names)
    description = f"{folder} ({part}, split {number})"
    return Split(tuple(records), class_names, f"{part}{number}", description, f"*{ending}", sha256)


def _parse_hmdb51_line(line: str, file: Path) -> tuple[str, str]:
    name, _, mark = line.rpartition(" ")
    if not name or mark not in ("0", "1", "2"):
        raise UserError(f"{file}: the line {line!r} is not 'NAME.avi 0|1|2': download the official file again")
    return name.strip(), mark

"""Read HMDB51's ``testTrainMulti_7030_splits/CLASS_test_splitN.txt``: one file per class and split.

A line is "name.avi NUMBER", where 1 means train, 2 test, and 0 neither. Classes are numbered alphabetically, and videos
lie in class folders.
"""

import re
from pathlib import Path

from data_tools.annotations.split import Split, VideoIndex, annotation_folder, read_lines
from data_tools.annotations.ucf101 import parse_split
from motionmae.errors import UserError
from motionmae.files import hash_files

_FILE = re.compile(r"(.+)_test_split([123])\.txt")
_MARK = {"train": "1", "test": "2"}


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part, number = parse_split(split)
    folder = annotation_folder(annotations, "testTrainMulti_7030_splits", f"*_test_split{number}.txt")
    files = {
        match[1]: path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)) and match[2] == str(number)
    }
    if not files:
        raise UserError(
            f"{folder} has no CLASS_test_split{number}.txt: give the official testTrainMulti_7030_splits folder as "
            "--annotations"
        )
    class_names = tuple(sorted(files))
    index = VideoIndex(videos, exclude)
    records = []
    for label, class_name in enumerate(class_names):
        for line in read_lines(files[class_name]):
            name, mark = _parse_line(line, files[class_name])
            if mark == _MARK[part]:
                path = f"{class_name}/{name}"
                records.append(index.record((Path(name).stem,), (class_name,), path, label, class_name))
    sha256 = hash_files([files[name] for name in class_names])
    description = f"{folder} ({part}, split {number})"
    return Split(tuple(records), class_names, f"{part}{number}", description, f"*_test_split{number}.txt", sha256)


def _parse_line(line: str, file: Path) -> tuple[str, str]:
    name, _, mark = line.rpartition(" ")
    if not name or mark not in ("0", "1", "2"):
        raise UserError(f"{file}: the line {line!r} is not 'NAME.avi 0|1|2': download the official file again")
    return name.strip(), mark

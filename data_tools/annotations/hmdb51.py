"""Read HMDB51's ``testTrainMulti_7030_splits/CLASS_test_splitN.txt``: one file per class and split.

A line is "name.avi NUMBER", where 1 means train, 2 test, and 0 neither. Classes are numbered alphabetically, and videos
lie in class folders.
"""

from pathlib import Path

from data_tools.annotations.split import Split, VideoIndex, annotation_folder, read_lines
from data_tools.annotations.ucf101 import parse_split
from motionmae.errors import UserError
from motionmae.files import hash_files

_FOLDER = "testTrainMulti_7030_splits"
_MARK = {"train": "1", "test": "2"}


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part, number = parse_split(split)
    ending = f"_test_split{number}.txt"
    folder = annotation_folder(annotations, _FOLDER, f"*{ending}")
    files = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}
    if not files:
        raise UserError(f"{folder} has no CLASS{ending}: give the official folder {_FOLDER} as --annotations")
    class_names = tuple(sorted(files))
    index = VideoIndex(videos, exclude)
    records = []
    for label, class_name in enumerate(class_names):
        for line in read_lines(files[class_name]):
            name, mark = _parse_line(line, files[class_name])
            if mark == _MARK[part]:
                path = f"{class_name}/{name}"
                records.append(index.record((Path(name).stem,), (class_name,), path, label, class_name))
    sha256 = hash_files(files[name] for name in class_names)
    description = f"{folder} ({part}, split {number})"
    return Split(tuple(records), class_names, f"{part}{number}", description, f"*{ending}", sha256)


def _parse_line(line: str, file: Path) -> tuple[str, str]:
    name, _, mark = line.rpartition(" ")
    if not name or mark not in ("0", "1", "2"):
        raise UserError(f"{file}: the line {line!r} is not 'NAME.avi 0|1|2': download the official file again")
    return name.strip(), mark

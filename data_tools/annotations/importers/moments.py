"""Read Moments in Time: ``trainingSet.csv`` and ``validationSet.csv``, and ``moments_categories.txt``.

The lists have no header: CLASS/NAME.mp4, class, and the votes for and against it. The categories are lines
"CLASS,NUMBER". Videos lie in ``training/CLASS/`` and ``validation/CLASS/``.
"""

from pathlib import Path

from data_tools.annotations.importers.official_files import class_names_of, find_official, official_part, split_cells
from data_tools.annotations.lists import read_lines
from data_tools.annotations.named_files import NamedFiles
from data_tools.annotations.split import Split, VideoRecord
from motionmae.errors import UserError
from motionmae.files import hash_files

_CATEGORIES = "moments_categories.txt"


def read(videos: Path, annotations: Path, split: str | None, exclude: Path | None = None) -> Split:
    part = official_part(split, {"train": "training", "val": "validation"}, "Moments in Time")
    file, classes_file = find_official(annotations, f"{part}Set.csv"), find_official(annotations, _CATEGORIES)
    numbers = _read_categories(classes_file)
    named = NamedFiles(videos)
    records = []
    for line in read_lines(file):
        name, class_name = [*split_cells(line), ""][:2]
        if class_name not in numbers:
            raise UserError(f"{file}: the line {line!r} names no class of {classes_file.name}: download both again")
        sources = (f"{part}/{name}", name)  # --videos may be the folder of the split
        found = ((source, named.find(source)) for source in sources)
        source, path = next((pair for pair in found if pair[1]), (sources[0], None))
        records.append(VideoRecord(source, path, numbers[class_name], class_name, sources[0]))
    class_names = class_names_of(classes_file, numbers)
    return Split(tuple(records), class_names, part, str(file), file.name, hash_files([file, classes_file]))


def _read_categories(file: Path) -> dict[str, int]:
    numbers = {}
    for line in read_lines(file):
        name, _, number = line.rpartition(",")
        if not name or not (number.strip().isascii() and number.strip().isdecimal() and len(number) < 10):
            raise UserError(f"{file}: the line {line!r} is not 'CLASS,NUMBER': download the official file again")
        numbers[name.strip()] = int(number)
    return numbers

"""Read any folder of videos. Labels come from lists or from class folders; a flat folder has no labels.

* Lists ``train.csv``, ``val.csv``, ``test.csv`` (or ``.txt``, ``.tsv``, ``.json``, ``.jsonl``), or one given file, in
  the forms of ``video_lists.py``. Labels are numbers, or names that are numbered alphabetically. If the folder of the
  list contains ``classInd.txt`` with lines "number name", that file names the numbers.
* Class folders ``CLASS/.../video`` or ``SPLIT/CLASS/.../video``. Classes are numbered alphabetically.
* A flat folder. The videos have no label.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_tools.annotations.class_tree import read_class_tree
from data_tools.annotations.list_labels import MAX_CLASSES, number_labels
from data_tools.annotations.lists import read_lines
from data_tools.annotations.named_files import NamedFiles
from data_tools.annotations.split import UNLABELLED, Split, VideoRecord, visible_files
from data_tools.annotations.video_index import find_moved, use_replacements
from data_tools.annotations.video_lists import read_video_list
from motionmae.errors import UserError
from motionmae.files import hash_files
from motionmae.text import excerpt

SUFFIXES = (".csv", ".txt", ".tsv", ".json", ".jsonl")
SPLITS = ("train", "val", "valid", "validation", "test")
_HMDB51_LIST = re.compile(r"_test_split[123]\.txt$")
_LIST = re.compile("train|val|test|list|label|annot|metadata|split|class", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


def read(
    videos: Path, annotations: Path, split: str | None, exclude: Path | None = None, images: bool = False
) -> Split:
    """Read one split, or all splits if ``split`` is None; see :func:`data_tools.annotations.read_split`."""
    if annotations.is_file():
        if _HMDB51_LIST.search(annotations.name):
            raise UserError(f"{annotations} is a list of HMDB51, where numbers are no labels: use the data set hmdb51")
        return _from_lists(videos, [annotations], split, exclude)
    lists = _find_lists(annotations, split)
    if lists:
        found = _from_lists(videos, lists, split, exclude)
        return replace(found, notes=(*found.notes, *_note_on_unread(lists)))
    other_lists = _find_lists(annotations, None)
    if annotations != videos or (other_lists and not (videos / str(split)).is_dir()):
        there = f", only {' and '.join(path.name for path in other_lists)}" if other_lists else ""
        raise UserError(f"{annotations} has no {split or 'train'}.csv or .txt{there}: give the list as --annotations")
    found = read_class_tree(videos, split, exclude, images)
    return replace(found, notes=(*found.notes, *_note_on_other_lists(found.skipped)))


def _find_lists(folder: Path, split: str | None) -> list[Path]:
    """Find the list of one split, or the lists of all splits. Of lists with the same name, the first ending counts."""
    names = {path.name: path for path in visible_files(folder, "*.[cCtTjJ]*")}
    names = {**{name.lower(): path for name, path in names.items()}, **names}  # Train.csv, unless there is train.csv
    candidates = [[f"{name}{suffix}" for suffix in SUFFIXES] for name in ([split] if split else SPLITS)]
    return [next(names[name] for name in found if name in names) for found in candidates if names.keys() & set(found)]


def _note_on_unread(lists: Sequence[Path]) -> tuple[str, ...]:
    unread = [path for one in lists for path in map(one.with_suffix, SUFFIXES) if path != one and path.is_file()]
    names = " and ".join(path.name for path in unread)
    return (f"{names} is not read, because {lists[0].parent} has a list of this name",) if unread else ()


def _note_on_other_lists(skipped: Sequence[str]) -> tuple[str, ...]:
    """Return a note on files beside class folders that may be lists: ``metadata.csv``, ``annotations/train.csv``."""
    lists = [name for name in skipped if name.lower().endswith(SUFFIXES) and _LIST.search(Path(name).stem)]
    if not lists:
        return ()
    return (f"{lists[0]} may be a list of labels and is not read: give it as --annotations if it is one",)


def _from_lists(videos: Path, files: Sequence[Path], split: str | None, exclude: Path | None) -> Split:
    named = NamedFiles(videos, exclude)
    lists = [read_video_list(file, split, named.find, named.is_file) for file in files]
    entries = [entry for one in lists for entry in one.entries]
    names = _read_class_names(files[0].parent) or _read_class_names(videos)
    numbers, name_of, notes = number_labels(entries, names)
    description = " and ".join(map(str, files))
    if named.folder and all(entry.path is None for entry in entries):
        remedy = "give lists of video files (frames become a video with `ffmpeg -i %05d.jpg`)"
        raise UserError(f"{description} names folders, such as {excerpt(named.folder)}, and no videos: {remedy}")
    records = tuple(
        VideoRecord(entry.source, entry.path, number, name_of.get(number, "" if number < 0 else str(number)))
        for entry, number in zip(entries, numbers, strict=True)
    )
    count = 1 + max([UNLABELLED, *name_of, *numbers])
    class_names = tuple(name_of.get(number, str(number)) for number in range(count))
    name = split or ("all" if len(files) > 1 else files[0].stem)
    split_file, sha256 = ", ".join(file.name for file in files), hash_files(files)
    records, moved = find_moved(videos, exclude, records)
    records = use_replacements(videos, records)
    all_notes = (*(note for one in lists for note in one.notes), *notes, *named.notes, *moved)
    return Split(records, class_names, name, description, split_file, sha256, notes=all_notes)


def _read_class_names(folder: Path) -> dict[int, str]:
    """Read ``classInd.txt``, which has a class number (as in the lists, from 0 or 1) and a name per line."""
    file = folder / "classInd.txt"
    if not file.is_file():
        return {}
    names = {}
    for line in read_lines(file):
        number, _, name = line.partition(" ")
        if not _NUMBER.fullmatch(number) or not name or int(number) >= MAX_CLASSES:
            raise UserError(f"{file}: the line {excerpt(line)!r} is not 'NUMBER NAME': correct the line")
        names[int(number)] = name.strip()
    return names

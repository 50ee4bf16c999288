"""Read a folder of videos without annotations: class folders, folders of splits with class folders, or a flat folder.

* Class folders ``CLASS/.../video`` or ``SPLIT/CLASS/.../video``. Classes are numbered alphabetically.
* A flat folder. The videos have no label.

Files that are no video are skipped by their names, and files without an extension of videos by their first bytes.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_tools.annotations.split import UNLABELLED, Split, VideoRecord
from data_tools.annotations.split_names import is_split_folder, split_of
from data_tools.annotations.video_index import use_replacements, walk_files
from data_tools.file_kinds import (
    APPLE_DOUBLE,
    PAGE,
    PICTURE,
    POINTER,
    REMEDIES,
    kind_of_content,
    kind_of_name,
    read_head,
)
from motionmae.data.video.read_video import VIDEO_SUFFIXES
from motionmae.errors import UserError

_SMALL = 64 << 10  # bytes; pointers and error pages are smaller, and few videos are
_STREAMS = (".mjpeg", ".mjpg")  # begin like a picture


def read_class_tree(videos: Path, split: str | None, exclude: Path | None = None, images: bool = False) -> Split:
    """Read one split, or the whole folder if ``split`` is None. With ``images``, pictures count as videos.

    Raises UserError if folders of splits stand where classes should be.
    """
    root = _find_root(videos, split)
    skipped_kinds: Counter[str] = Counter()
    found, skipped = [], []
    for path in walk_files(root, exclude, skipped_kinds):
        kind = _kind_of(path)
        if kind and not (images and kind == PICTURE):
            skipped_kinds[kind] += 1
            skipped.append(path.relative_to(videos).as_posix())
        else:
            found.append(path)
    parts = [path.relative_to(root).parts for path in found]
    classes = sorted({names[0] for names in parts if len(names) > 1})
    _refuse_split_folders(root, classes)
    below = sorted({f"{names[0]}/{names[1]}" for names in parts if len(names) > 2})
    _refuse_split_folders(root, below, root / classes[0] if len(classes) == 1 else None)
    numbers = {name: number for number, name in enumerate(classes)}
    records = []
    for path, (top, *below) in zip(found, parts, strict=True):
        class_name = top if below else ""
        label = numbers.get(class_name, UNLABELLED)
        records.append(VideoRecord(path.relative_to(videos).as_posix(), path, label, class_name))
    notes = (
        *_describe(skipped_kinds),
        *_note_on_one_class(root, classes, parts),
        *_note_on_numbers(classes),
        *_note_on_unlabelled(records),
    )
    videos_of_split = use_replacements(videos, records)
    return Split(videos_of_split, tuple(classes), split or "all", str(root), skipped=tuple(skipped), notes=notes)


def _find_root(videos: Path, split: str | None) -> Path:
    """Return the folder of a split: the folder of this name, or else the only one with another name of the split."""
    if not split or (videos / split).is_dir():
        return videos / (split or "")
    wanted = split_of(split) if split.isalpha() else None
    found = sorted(path for path in videos.iterdir() if wanted and path.is_dir() and split_of(path.name) == wanted)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{videos} has {len(found)} folders of the split {split} ({names}): give one as --split")
    return found[0] if found else videos


def _kind_of(path: Path) -> str | None:
    """Return the kind of a file that is no video, or None. Only files that are suspicious by name or size are read."""
    suffix = path.suffix.lower()
    if kind := kind_of_name(path.name):
        return kind
    if suffix not in VIDEO_SUFFIXES and suffix not in _STREAMS:
        return kind_of_content(read_head(path))
    try:
        is_small = path.stat().st_size < _SMALL
    except OSError:
        return None
    kind = kind_of_content(read_head(path)) if is_small else None
    return kind if kind in (POINTER, PAGE, APPLE_DOUBLE) else None


def _refuse_split_folders(root: Path, classes: Sequence[str], around: Path | None = None) -> None:
    """Raise UserError if a folder that stands for a class is called like a split or another part of a data set.

    ``around`` is the folder of all of them if it may be that of the data set, as in ``UCF/train``, ``UCF/test``.
    """
    folders = [name for name in classes if is_split_folder(name.rpartition("/")[2])]
    if not folders:
        return
    names = ", ".join(folders[:5]) + (f" and {len(folders) - 5} more" if len(folders) > 5 else "")
    if around and len(folders) == len(classes):
        remedy = f"give {around} as --videos, and choose one with --split"
    elif any("/" in name for name in folders):
        remedy = "move each split to a folder of its own, SPLIT/CLASS/, or give lists as --annotations"
    elif any(map(split_of, folders)):
        remedy = "choose one with --split, or give its folder as --videos"
    else:
        remedy = "give the folder of the classes as --videos"
    if set(folders) < set(classes):
        remedy += "; a class that is called so needs another name, or a list as --annotations"
    raise UserError(f"{root} holds the splits {names}: {remedy}")


def _describe(skipped_kinds: Counter[str]) -> tuple[str, ...]:
    """Return a note with the number of files of each kind that were skipped, and the remedies."""
    counts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(skipped_kinds.items()) if count]
    remedies = [REMEDIES[kind] for kind in (POINTER, PAGE) if skipped_kinds[kind]]
    return ("; ".join(["skipped " + ", ".join(counts), *remedies]),) if counts else ()


def _note_on_one_class(root: Path, classes: Sequence[str], parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return a note if a folder such as ``UCF-101/`` around all others was taken for the only class."""
    if len(classes) != 1:
        return ()
    below = {names[1] for names in parts if len(names) > 2}
    if len(below) < 2:
        return (f"the only class is {classes[0]}: if it is no class, give {root / classes[0]} as --videos",)
    count = f"the only class is {classes[0]}, with {len(below)} folders in it"
    return (f"{count}: if these are the classes, give {root / classes[0]} as --videos",)


def _note_on_numbers(classes: Sequence[str]) -> tuple[str, ...]:
    """Return a note if folders are called by numbers other than those of their classes."""
    other = [(name, number) for number, name in enumerate(classes) if name.isdecimal() and int(name) != number]
    if not other or not all(map(str.isdecimal, classes)):
        return ()
    name, number = other[0]
    remedy = "give a list as --annotations if the names of the folders are the class numbers"
    return (f"the folder {name} is class {number}, because classes are numbered in the order of their names: {remedy}",)


def _note_on_unlabelled(records: Sequence[VideoRecord]) -> tuple[str, ...]:
    without = [record.source for record in records if record.label == UNLABELLED]
    if not without or len(without) == len(records):
        return ()
    return (f"{len(without)} of {len(records)} videos lie in no class folder and have no label, first {without[0]}",)

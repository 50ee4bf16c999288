"""The result of every annotation reader (:class:`Split`), and the search for the video files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from motionmae.data.video import VIDEO_SUFFIXES
from motionmae.errors import UserError

UNLABELLED = -1
"""Label of a video without a known class (test splits of K400 and SSv2, folders without classes)."""


@dataclass(frozen=True)
class VideoRecord:
    """One video of a split: its file, if it was found, and its class."""

    source: str  # path within the data set, with ``/`` between folders; the expected name if the video is missing
    path: Path | None  # the video file; None if it does not exist
    label: int = UNLABELLED  # class number, from 0
    class_name: str = ""  # empty for an unlabelled video
    annotation_name: str = ""  # name of the video in the annotations; empty if the annotations give a path

    @property
    def identity(self) -> str:
        """Name that does not change when a missing video is added later, whatever its folder."""
        return self.annotation_name or self.source


@dataclass(frozen=True)
class Split:
    """One split of a data set, as read from its annotations."""

    videos: tuple[VideoRecord, ...]  # all videos in the order of the annotations, including missing ones
    class_names: tuple[str, ...]  # class name of each label
    name: str  # name of the split; shards are named after it
    description: str  # files or folder that were read, for messages
    split_file: str = ""  # name of the annotation file; empty if the labels come from the folder structure
    split_sha256: str = ""  # hash of the annotation files
    skipped: tuple[str, ...] = ()  # files of the folder whose extension is not that of a video
    notes: tuple[str, ...] = ()  # sentences for the summary


def annotation_folder(annotations: Path, official_name: str, pattern: str) -> Path:
    """Return the folder of the files that match ``pattern``: that of ``annotations``, or ``official_name`` in it."""
    folder = annotations.parent if annotations.is_file() else annotations
    if not any(folder.glob(pattern)) and (folder / official_name).is_dir():
        return folder / official_name
    return folder


def walk_files(root: Path, exclude: Path | None = None) -> Iterator[Path]:
    """Yield the sorted, non-hidden files in ``root``, recursively. Follow symbolic links, but visit no folder twice."""
    seen: set[tuple[int, int]] = set()
    excluded = exclude.resolve() if exclude is not None else None
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_unlistable):
        status = os.stat(folder)  # noqa: PTH116 - a str from os.walk
        inode = (status.st_dev, status.st_ino)
        if inode in seen or (excluded is not None and Path(folder).resolve() == excluded):
            subfolders.clear()
            continue
        seen.add(inode)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _refuse_unlistable(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror}): make it readable") from error


class VideoIndex:
    """Index of all videos in a folder, recursively, by file stem.

    Copies of a data set may be flat, have class folders or a folder ``train/``, use ``_`` for blanks, or have ``.mkv``
    instead of ``.mp4`` files. Only the stem is the same in every copy.
    """

    def __init__(self, root: Path, exclude: Path | None = None):
        self._root = root
        self._by_stem: dict[str, list[Path]] = {}
        for path in walk_files(root, exclude):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                self._by_stem.setdefault(path.stem.lower(), []).append(path)

    def record(
        self, stems: Sequence[str], folders: Sequence[str], name: str, label: int, class_name: str
    ) -> VideoRecord:
        """Return the record of a video, with the file for the first of ``stems`` that exists, ignoring case.

        If several files have this stem, the file whose path contains most of ``folders`` is chosen. ``name`` is the
        video's name in the annotations.
        """
        found = next(filter(None, (self._by_stem.get(stem.lower()) for stem in stems)), None)
        if found is None:
            return VideoRecord(name, None, label, class_name, name)
        preferred = {_normalized(folder) for folder in folders}
        path = max(found, key=lambda path: sum(_normalized(part) in preferred for part in path.parent.parts))
        return VideoRecord(path.relative_to(self._root).as_posix(), path, label, class_name, name)


def _normalized(name: str) -> str:
    return name.lower().replace("_", " ")

"""The result of every annotation reader (:class:`Split`)."""

import fnmatch
from dataclasses import dataclass
from pathlib import Path

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
    alternatives: tuple[tuple[str, Path], ...] = ()  # (source, path) of other files, tried if ``path`` does not decode
    caption: str = ""  # text that describes the video

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """(source, path) of all files, in the order in which they are tried."""
        return ((self.source, self.path), *self.alternatives) if self.path is not None else ()

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


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the sorted files of a folder that match, without hidden ones such as ``._train.csv`` of macOS.

    Raises UserError if the folder cannot be listed.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed ({error.strerror}): make it readable") from error
    files = [folder / name for name in names if fnmatch.fnmatchcase(name, pattern) and name[0] != "."]
    return [path for path in files if path.is_file()]


def annotation_folder(annotations: Path, official_name: str, pattern: str) -> Path:
    """Return the folder of the files that match ``pattern``: that of ``annotations``, or ``official_name`` in it."""
    folder = annotations.parent if annotations.is_file() else annotations
    if not visible_files(folder, pattern) and (folder / official_name).is_dir():
        return folder / official_name
    return folder

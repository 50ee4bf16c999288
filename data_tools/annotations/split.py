"""What every annotation reader gives (a :class:`Split`), and the search for the files that annotations name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from motionmae.data.video import VIDEO_SUFFIXES
from motionmae.errors import UserError

UNLABELLED = -1
"""Label of a video whose class is not told (the test splits of K400 and SSv2, a folder without classes)."""


@dataclass(frozen=True)
class VideoRecord:
    """One video of a split."""

    source: str
    """Path within the data set, ``/`` between folders; for a missing video the name that was looked for."""
    path: Path | None
    """Where the file is; None if the annotations name a video that is not there."""
    label: int = UNLABELLED
    """Class number from 0."""
    class_name: str = ""
    """Name of the class, empty for an unlabelled video."""
    name: str = ""
    """What the annotations call it, wherever it lies; empty where they give its path."""

    @property
    def identity(self) -> str:
        """A name that stays when a missing video is supplied."""
        return self.name or self.source


@dataclass(frozen=True)
class Split:
    """One split of a data set."""

    rows: tuple[VideoRecord, ...]
    """Every video the annotations name, in their order, the missing ones included."""
    class_names: tuple[str, ...]
    """Name of each label."""
    split: str
    """Name of the split, as the shards will bear it."""
    described: str
    """What was read, for messages."""
    split_file: str = ""
    """Name of the annotation file; empty where the folders themselves are the annotation."""
    split_sha256: str = ""
    """Hash of the annotation files."""
    passed_over: tuple[str, ...] = ()
    """Files of the folder that are no videos by their name."""
    notes: tuple[str, ...] = ()
    """What a person should know about this listing, one sentence each."""


def read_lines(path: Path) -> list[str]:
    """Lines of a list file without their ends (CRLF or LF) and outer blanks; no byte-order mark, no empty lines."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return [line for line in map(str.strip, text.splitlines()) if line]


def walk_files(root: Path, exclude: Path | None = None) -> Iterator[Path]:
    """Everything below ``root`` but folders and hidden files, sorted; symbolic links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    excluded = exclude.resolve() if exclude is not None else None
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_unlistable):
        status = os.stat(folder)  # noqa: PTH116 - a str from os.walk
        here = (status.st_dev, status.st_ino)
        if here in seen or (excluded is not None and Path(folder).resolve() == excluded):
            subfolders.clear()
            continue
        seen.add(here)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _refuse_unlistable(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror}): make it readable") from error


class VideoIndex:
    """All videos below a folder by the stem of their name, so that annotations find them however they are laid out.

    Data sets are unpacked flat, in class folders, under ``train/``, with ``_`` for blanks, as ``.mkv`` for ``.mp4``:
    the stem is what stays.
    """

    def __init__(self, root: Path, exclude: Path | None = None):
        self.root = root
        self._by_stem: dict[str, list[Path]] = {}
        for path in walk_files(root, exclude):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                self._by_stem.setdefault(path.stem.lower(), []).append(path)

    def find(self, stems: Iterable[str], folders: Iterable[str] = ()) -> Path | None:
        """The file with the first of ``stems`` that exists.

        Args:
            stems: names without ending, the best first; upper and lower case count alike.
            folders: names of folders that tell files of the same stem apart: the file below most of them wins.
        """
        wanted = {_plain(folder) for folder in folders}
        for stem in stems:
            found = self._by_stem.get(stem.lower(), [])
            if found:
                return max(found, key=lambda path: sum(_plain(part) in wanted for part in path.parent.parts))
        return None

    def source(self, path: Path) -> str:
        """Path of a found file within the folder."""
        return path.relative_to(self.root).as_posix()

    def row(self, stems: Sequence[str], folders: Sequence[str], name: str, label: int, class_name: str) -> VideoRecord:
        """The row of the video with one of ``stems``; ``name`` is what it is called if it is not there."""
        path = self.find(stems, folders)
        return VideoRecord(name if path is None else self.source(path), path, label, class_name, name)


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")

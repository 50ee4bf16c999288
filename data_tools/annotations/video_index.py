"""The search for the files of videos that annotations name without a path, or with a path that does not exist."""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_tools.annotations.split import VideoRecord
from data_tools.annotations.split_names import is_replacement, split_of
from data_tools.file_kinds import APPLE_DOUBLE, SYSTEM_FOLDERS, is_unfinished
from motionmae.data.video.read_video import VIDEO_SUFFIXES
from motionmae.errors import UserError

_CLIP = re.compile(r"(?:v_)?([A-Za-z0-9_-]{11})[_-](\d{1,9}(?:\.\d+)?)[_-](\d{1,9}(?:\.\d+)?)", re.ASCII)
"""Name of a clip: its id at YouTube, start and end second, as ``ID_000000_000010``, ``ID_0_10`` or ``ID_0.0_10.0``."""


def walk_files(root: Path, exclude: Path | None = None, skipped_kinds: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the sorted, non-hidden files in ``root``, recursively. Follow symbolic links, but visit no folder twice.

    Folders of operating systems are skipped. ``skipped_kinds`` counts them and the AppleDouble files by kind.
    """
    counts: Counter[str] = Counter() if skipped_kinds is None else skipped_kinds
    seen: set[tuple[int, int]] = set()
    excluded = exclude.resolve() if exclude is not None else None
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_unlistable):
        status = os.stat(folder)  # noqa: PTH116 - a str from os.walk
        inode = (status.st_dev, status.st_ino)
        if inode in seen or (excluded is not None and Path(folder).resolve() == excluded):
            subfolders.clear()
            continue
        seen.add(inode)
        counts["system folder"] += sum(name.lower() in SYSTEM_FOLDERS for name in subfolders)
        counts[APPLE_DOUBLE] += sum(name.startswith("._") for name in names)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and name.lower() not in SYSTEM_FOLDERS)
        here = Path(folder)
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _refuse_unlistable(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror}): make it readable") from error


class _File(NamedTuple):
    """Video file of an index, with what is compared."""

    path: Path
    source: str  # path in the indexed folder, with / between folders
    name: str  # in the canonical form
    folders: tuple[str, ...]
    is_replacement: bool  # whether it lies in a folder ``replacement*``

    @property
    def names(self) -> set[str]:
        """Canonical names for which the file stands: a replacement also stands for clips of its id with other times."""
        clip = _CLIP.fullmatch(self.name) if self.is_replacement else None
        return {self.name, clip[1]} if clip else {self.name}


class VideoIndex:
    """Index of all videos in a folder, recursively, by name without extension.

    Copies of a data set may be flat, have class folders or a folder ``train/``, use ``_`` for blanks, or have ``.mkv``
    or ``.mp4.mkv`` instead of ``.mp4`` files. Names are compared without regard to case and Unicode normalization, and
    clips by id and seconds. A folder ``replacement*`` holds better copies of corrupt videos.

    Args:
        named: names without extension that the annotations hold. A file with the exact name of one video is never taken
            for another video whose name differs in case only, because the ids of YouTube distinguish case.
        folders: folders in ``root`` that are searched; by default ``root``.
    """

    def __init__(
        self,
        root: Path,
        exclude: Path | None = None,
        named: Iterable[str] = (),
        folders: Sequence[Path] | None = None,
    ):
        self._named = frozenset(map(canonical, named))
        self._files: dict[str, list[_File]] = {}
        walks = (walk_files(folder, exclude) for folder in (folders or [root]))
        for path in itertools.chain.from_iterable(walks):
            if path.suffix.lower() in VIDEO_SUFFIXES and not is_unfinished(path.name):
                relative = path.relative_to(root)
                parts = relative.parts[:-1]
                file = _File(path, relative.as_posix(), canonical(path.name), parts, any(map(is_replacement, parts)))
                for name in file.names:
                    self._files.setdefault(name.lower(), []).append(file)

    def record(
        self,
        stems: Sequence[str],
        folders: Sequence[str],
        name: str,
        label: int,
        class_name: str,
        split: str | None = None,
    ) -> VideoRecord:
        """Return the record of a video, with the files for the first of ``stems`` that exists.

        Several files are in the order in which they are tried: folders ``replacement*``, the exact name, the folder of
        ``split``, no folder of another split, paths with most of ``folders``. ``name`` is the video's name in the
        annotations.
        """
        found: list[_File] = []
        own = list(map(canonical, stems))
        for stem in own:
            same = [file for file in self._of(stem) if file not in found and not self._is_of_other(file, own)]
            found += [file for file in same if file.is_replacement] if found else same
        if not found:
            return VideoRecord(name, None, label, class_name, name)
        preferred = set(map(_normalized, folders))

        def rank(file: _File) -> tuple[object, ...]:
            splits = set(map(split_of, file.folders)) - {None}
            matching = sum(_normalized(folder) in preferred for folder in file.folders)
            wrong_split = 1 if not splits else 0 if split in splits else 2
            is_exact = file.path.stem == stems[0]
            is_animation = file.path.suffix.lower() == ".gif"  # often a preview of the video
            return (not file.is_replacement, is_animation, not is_exact, wrong_split, -matching)

        if len(found) > 1:
            found = _without_links(sorted(found, key=rank))
        first, *others = found
        alternatives = tuple((other.source, other.path) for other in others)
        return VideoRecord(first.source, first.path, label, class_name, name, alternatives)

    def find_moved(self, source: str, is_unique: bool) -> tuple[str, Path] | None:
        """Return the only file that a listed path can mean; ``is_unique`` if no other listed path has the same name."""
        folders = [_normalized(part) for part in PurePosixPath(source.replace("\\", "/")).parts[:-1]]

        def agreed(file: _File) -> int:
            parts = [_normalized(part) for part in file.folders]
            length = min(len(parts), len(folders))
            if length == 0 and not is_unique:
                return -1
            same = parts[len(parts) - length :] == folders[len(folders) - length :]
            return (length if parts != folders else len(parts) + 1) if same else -1

        files = self._of(canonical(source))
        most = max(map(agreed, files), default=-1)
        best = [file for file in files if agreed(file) == most]
        return (best[0].source, best[0].path) if most >= 0 and len(best) == 1 else None

    def _of(self, name: str) -> list[_File]:
        """Return the files with a canonical name: in the same case if there are any, otherwise in another case."""
        found = self._files.get(name.lower(), [])
        exact = [file for file in found if name in file.names]
        return exact or [file for file in found if file.name not in self._named]

    def _is_of_other(self, file: _File, own: Sequence[str]) -> bool:
        """Return whether a file has the name of another clip with the same id."""
        return file.name in self._named and file.name not in own


def find_moved(
    root: Path, exclude: Path | None, videos: Sequence[VideoRecord]
) -> tuple[tuple[VideoRecord, ...], tuple[str, ...]]:
    """Find missing videos of a list whose file has another extension or lies in a folder around the listed ones.

    The listed folders and those of the file must agree as far as both go. A name without folders must be the only one.
    Return all videos, and a note on those that were found, or on a folder that stopped the search.
    """
    if all(video.path for video in videos):
        return tuple(videos), ()
    counts = Counter(canonical(video.source) for video in videos)
    try:
        index = VideoIndex(root, exclude, counts)
    except UserError as error:
        return tuple(videos), (f"missing videos were not searched for, because {error}",)
    moved = []
    result = []
    for video in videos:
        is_unique = counts[canonical(video.source)] == 1
        if video.path is None and (found := index.find_moved(video.source, is_unique)):
            moved.append((found[0], video.source))
            video = replace(video, source=found[0], path=found[1], annotation_name=video.source)
        result.append(video)
    if not moved:
        return tuple(videos), ()
    note = f"videos that have other paths than in the list: {len(moved)}, first {moved[0][0]} instead of {moved[0][1]}"
    return tuple(result), (note,)


def use_replacements(root: Path, videos: Sequence[VideoRecord]) -> tuple[VideoRecord, ...]:
    """Put the file of a folder ``replacement*`` in ``root`` before each video that has the same, unique name."""
    folders = sorted(path for path in root.iterdir() if is_replacement(path.name) and path.is_dir())
    if not folders:
        return tuple(videos)
    counts = Counter(canonical(video.source) for video in videos)
    index = VideoIndex(root, folders=folders)

    def replaced(video: VideoRecord) -> VideoRecord:
        better = index.record([video.source], [], video.source, video.label, video.class_name)
        is_same = video.path is not None and is_replacement(Path(video.source).parts[0])
        if better.path is None or counts[canonical(video.source)] > 1 or is_same:
            return video
        return replace(better, alternatives=(*better.alternatives, *video.files))

    return tuple(map(replaced, videos))


def canonical(name: str) -> str:
    """Return the form in which names are compared: without extensions of videos, composed, and seconds as numbers."""
    stem = unicodedata.normalize("NFC", name.rpartition("/")[2])  # strings, because lists have a million lines
    while (parts := os.path.splitext(stem))[1].lower() in VIDEO_SUFFIXES:  # noqa: PTH122
        stem = parts[0]
    clip = _CLIP.fullmatch(stem)
    return f"{clip[1]}_{float(clip[2]):.3f}_{float(clip[3]):.3f}" if clip else stem


def _without_links(files: Sequence[_File]) -> list[_File]:
    """Return the files without later links to an earlier one, and links to nothing last."""
    distinct: dict[tuple[int, int], _File] = {}
    broken = []
    for file in files:
        try:
            status = file.path.stat()
            distinct.setdefault((status.st_dev, status.st_ino), file)
        except OSError:
            broken.append(file)
    return [*distinct.values(), *broken]


def _normalized(name: str) -> str:
    return name.lower().replace("_", " ")

"""The search for the files of videos that annotations name without a path, or with a path that does not exist."""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

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
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _refuse_unlistable(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror}): make it readable") from error


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
        named: Collection[str] = (),
        folders: Sequence[Path] | None = None,
    ):
        self._root = root
        self._named = frozenset(map(canonical, named))
        self._files: dict[str, list[Path]] = {}
        walks = (walk_files(folder, exclude) for folder in (folders or [root]))
        for path in itertools.chain.from_iterable(walks):
            if path.suffix.lower() in VIDEO_SUFFIXES and not is_unfinished(path.name):
                for name in _names_of(path, root):
                    self._files.setdefault(name.lower(), []).append(path)

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
        found: list[Path] = []
        own = set(map(canonical, stems))
        for stem in map(canonical, stems):
            same = [path for path in self._of(stem) if path not in found and not self._is_of_other(path, own)]
            found += [path for path in same if is_replaced(path, self._root)] if found else same
        if not found:
            return VideoRecord(name, None, label, class_name, name)
        preferred = {_normalized(folder) for folder in folders}

        def rank(path: Path) -> tuple[object, ...]:
            parts = path.relative_to(self._root).parts[:-1]
            splits = {split_of(part) for part in parts} - {None}
            matching = sum(_normalized(part) in preferred for part in parts)
            wrong_split = 1 if not splits else 0 if split in splits else 2
            is_exact = path.stem == stems[0]
            is_animation = path.suffix.lower() == ".gif"  # often a preview of the video
            return (not is_replaced(path, self._root), is_animation, not is_exact, wrong_split, -matching)

        path, *others = _without_links(sorted(found, key=rank))
        alternatives = tuple((self._source(other), other) for other in others)
        return VideoRecord(self._source(path), path, label, class_name, name, alternatives)

    def find_moved(self, source: str, counts: Mapping[str, int]) -> Path | None:
        """Return the only file that a listed path can mean; ``counts`` are the listed names."""
        name = canonical(source)
        folders = [_normalized(part) for part in PurePosixPath(source.replace("\\", "/")).parts[:-1]]

        def agreed(path: Path) -> int:
            parts = [_normalized(part) for part in path.relative_to(self._root).parts[:-1]]
            length = min(len(parts), len(folders))
            if length == 0 and counts[name] > 1:
                return -1
            same = parts[len(parts) - length :] == folders[len(folders) - length :]
            return (length if parts != folders else len(parts) + 1) if same else -1

        paths = sorted(self._of(name), key=agreed, reverse=True)
        if not paths or agreed(paths[0]) < 0 or (len(paths) > 1 and agreed(paths[1]) == agreed(paths[0])):
            return None
        return paths[0]

    def _of(self, stem: str) -> list[Path]:
        """Return the files with a canonical name: in the same case if there are any, otherwise in another case."""
        found = self._files.get(stem.lower(), [])
        exact = [path for path in found if stem in _names_of(path, self._root)]
        return exact or [path for path in found if canonical(path.name) not in self._named]

    def _is_of_other(self, path: Path, own: set[str]) -> bool:
        """Return whether a file has the name of another clip with the same id."""
        name = canonical(path.name)
        return name in self._named and name not in own

    def _source(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def find_moved(
    root: Path, exclude: Path | None, videos: Sequence[VideoRecord]
) -> tuple[tuple[VideoRecord, ...], tuple[str, ...]]:
    """Find missing videos of a list whose file has another extension or lies in a folder around the listed ones.

    The listed folders and those of the file must agree as far as both go. A name without folders must be the only one.
    Return all videos, and a note on those that were found.
    """
    if all(video.path for video in videos):
        return tuple(videos), ()
    counts = Counter(canonical(video.source) for video in videos)
    index = VideoIndex(root, exclude, list(counts))
    found = {video.source: index.find_moved(video.source, counts) for video in videos if not video.path}
    moved = {source: path for source, path in found.items() if path}
    sources = {source: path.relative_to(root).as_posix() for source, path in moved.items()}
    note = [f"{len(moved)} videos have other paths than in the list, first {{}} instead of {{}}"] if moved else []
    first = next(iter(sources.items()), ("", ""))
    changed = (
        replace(video, source=sources[video.source], path=path, annotation_name=video.source)
        if (path := moved.get(video.source)) and not video.path
        else video
        for video in videos
    )
    return tuple(changed), tuple(text.format(first[1], first[0]) for text in note)


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


def is_replaced(path: Path, root: Path) -> bool:
    """Return whether a file lies in a folder ``replacement*``."""
    return any(map(is_replacement, path.relative_to(root).parts[:-1]))


def _names_of(path: Path, root: Path) -> set[str]:
    """Return the canonical names of a file. A replacement also stands for clips of its id with other seconds."""
    name = canonical(path.name)
    clip = _CLIP.fullmatch(name)
    return {name, clip[1]} if clip and is_replaced(path, root) else {name}


def _without_links(paths: Sequence[Path]) -> list[Path]:
    """Return the paths without later links to an earlier file, and links to nothing last."""
    if len(paths) == 1:
        return list(paths)
    files: dict[tuple[int, int], Path] = {}
    broken = []
    for path in paths:
        try:
            status = path.stat()
            files.setdefault((status.st_dev, status.st_ino), path)
        except OSError:
            broken.append(path)
    return [*files.values(), *broken]


def _normalized(name: str) -> str:
    return name.lower().replace("_", " ")

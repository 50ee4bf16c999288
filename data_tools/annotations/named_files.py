"""The search for the files that a list names by a path."""

import errno
import os
import stat
import unicodedata
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from data_tools.annotations.video_index import walk_files
from motionmae.data.video.read_video import VIDEO_SUFFIXES
from motionmae.text import excerpt

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class NamedFiles:
    """Files below a folder, by the paths that a list gives.

    A path may have backslashes as on Windows, or letters with accents in another Unicode form than the disk (lists of
    Linux and disks of macOS). A path of another machine is found by its last parts, and a name without extension by
    the only video that has it. :attr:`notes` tells these.
    """

    def __init__(self, root: Path, exclude: Path | None = None) -> None:
        self._root, self._exclude = root, exclude
        self._composed_names = lru_cache(10_000)(_composed_names)
        self._notes: dict[str, str] = {}  # on the first name of each kind
        self.folder = ""  # the last name that is a folder: lists of frames name folders

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the names that are not found as they are written."""
        return tuple(self._notes.values())

    def is_file(self, name: str) -> bool:
        """Return whether the file exists exactly as a list writes it."""
        return bool(name) and self._exists(self._root / name, name)

    def find(self, name: str) -> Path | None:
        """Return the file that a list calls ``name``; None if it does not exist or is a folder.

        A file whose existence cannot be decided is returned, so that its decoding gives the reason.
        """
        if not name or "\0" in name:
            return None
        spelling = name.replace("\\", "/")
        for path in (self._root / one for one in dict.fromkeys((name, spelling))):
            if self._exists(path, name):
                return path
        if not name.isascii() and (found := self._find_composed(spelling)):
            return found
        if spelling.startswith("/") or spelling[1:3] == ":/":
            return self._find_end(spelling)
        return None if PurePosixPath(spelling).suffix.lower() in VIDEO_SUFFIXES else self._find_stem(spelling)

    def _exists(self, path: Path, name: str) -> bool:
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - a list may have a million lines
        except OSError as error:
            return error.errno not in _ABSENT
        except ValueError:  # lone surrogates that no file name has
            return False
        if stat.S_ISDIR(mode):
            self.folder = name
            return False
        return True

    def _find_composed(self, name: str) -> Path | None:
        """Follow the parts of a path, comparing names in the composed form (NFC)."""
        path = Path("/") if name.startswith("/") else self._root
        for part in PurePosixPath(name.lstrip("/")).parts:
            if not _lexists(path / part):
                part = self._composed_names(path).get(unicodedata.normalize("NFC", part), "")
                if not part:
                    return None
            path /= part
        return path if self._exists(path, name) else None

    def _find_end(self, name: str) -> Path | None:
        """Find an absolute path of another machine by as many of its last parts as possible."""
        parts = PurePosixPath(name).parts[1:]
        for count in range(len(parts), 0, -1):
            end = "/".join(parts[-count:])
            path = self._root / end
            if self._exists(path, name):
                if count < len(parts):
                    self._notes.setdefault(
                        "end", f"{excerpt(name)} of the list does not exist, and {path} is taken for it"
                    )
                return path
        return None

    def _find_stem(self, name: str) -> Path | None:
        found = self._by_stem.get(unicodedata.normalize("NFC", name), ())
        if len(found) > 1:
            self._notes.setdefault(
                "stem", f"{excerpt(name)} of the list may be {found[0]} or {found[1]}: write the whole path"
            )
        return found[0] if len(found) == 1 else None

    @cached_property
    def _by_stem(self) -> dict[str, tuple[Path, ...]]:
        """Videos by path and by name, both without extension."""
        found: dict[str, tuple[Path, ...]] = {}
        for path in walk_files(self._root, self._exclude):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                for stem in {path.stem, path.relative_to(self._root).with_suffix("").as_posix()}:
                    key = unicodedata.normalize("NFC", stem)
                    found[key] = (*found.get(key, ())[:1], path)
        return found


def _lexists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def _composed_names(folder: Path) -> dict[str, str]:
    """Map the composed form of each name in a folder that is not ASCII to the name itself."""
    try:
        names = [name for name in os.listdir(folder) if not name.isascii()]  # noqa: PTH208 - plain strings
    except OSError:
        return {}
    return {unicodedata.normalize("NFC", name): name for name in sorted(names, reverse=True)}

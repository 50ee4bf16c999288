"""The search for the files that a list names by a path."""

import errno
import os
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path, PurePosixPath

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class NamedFiles:
    """Files below a folder, by the paths that a list gives.

    A path may be absolute, also if the folder of the videos is its root ("/train/a.mp4"), have backslashes as on
    Windows, or have letters with accents in another Unicode form than the disk, as lists from macOS and Linux do.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._composed_names = lru_cache(10_000)(_composed_names)
        self.folder = ""  # the last name that is a folder: lists of frames name folders

    def find(self, name: str) -> Path | None:
        """Return the file that a list calls ``name``; None if it does not exist or is a folder.

        A file whose existence cannot be decided is returned, so that its decoding gives the reason.
        """
        if not name or "\0" in name:
            return None
        spellings = [name, name.replace("\\", "/")] if "\\" in name else [name]
        for spelling in spellings:
            for path in (self._root / spelling, self._root / spelling.lstrip("/")):
                if self._exists(path, name):
                    return path
                if not spelling.startswith("/"):
                    break
        if name.isascii():
            return None
        return next(filter(None, map(self._find_composed, spellings)), None)

    def _exists(self, path: Path, name: str) -> bool:
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - a million lines, and Path.stat takes twice as long
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
        path = Path("/") if name.startswith("/") and not self._root.joinpath(name[1:]).parent.exists() else self._root
        for part in PurePosixPath(name.lstrip("/")).parts:
            if not self._exists_any(path / part):
                part = self._composed_names(path).get(unicodedata.normalize("NFC", part), "")
                if not part:
                    return None
            path /= part
        return path if self._exists(path, name) else None

    @staticmethod
    def _exists_any(path: Path) -> bool:
        return os.path.lexists(path)


def _composed_names(folder: Path) -> dict[str, str]:
    """Map the composed form of each name in a folder that is not ASCII to the name itself."""
    try:
        names = [name for name in os.listdir(folder) if not name.isascii()]  # noqa: PTH208 - plain strings
    except OSError:
        return {}
    return {unicodedata.normalize("NFC", name): name for name in sorted(names, reverse=True)}

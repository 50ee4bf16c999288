"""Helpers for files: atomic and durable writing, hashing, and checks of output paths."""

import argparse
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from motionmae import locks
from motionmae.errors import UserError

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_DESCRIPTOR_FOLDERS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
"""Folders that name the open files of this process. A redirected stdout must be written to and not replaced."""


def hash_files(paths: Iterable[Path]) -> str:
    """Return the sha256 of the concatenated files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk. A flushed folder keeps the renames inside it after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file with ``content``, see :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Replace ``path`` by a JSON file with ``content``. Raises UserError if the file cannot be written."""
    try:
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path} cannot be written ({reason}): free space on its disk, or choose another path"
        ) from error


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path`` and rename it to ``path`` at the end of the block.

    A reader of ``path`` sees the old content or the new content, never a part. An exception removes the temporary file
    and leaves ``path`` unchanged. The new file has the mode of the old one. If ``path`` is a symbolic link, its target
    is replaced. A pipe or a device such as ``/dev/stdout`` cannot be replaced, and is yielded itself.

    The temporary file ``.NAME.<8 hex digits>.tmp`` is locked while it is written. If a writer is killed, its temporary
    file has no lock, and the next writer of ``path`` deletes it.

    Args:
        durable: flush the file and its folder to the disk, so that the file survives a power cut.
    """
    if is_special(path):
        yield path
        return
    path = _follow(path)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    with _temporary(path, lambda new: os.open(new, _NEW_FILE, 0o666 if mode is None else 0o600)) as temporary:
        yield temporary
        if mode is not None and stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        if durable:
            sync(temporary)
        temporary.replace(path)
    if durable:
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path`` and rename it to ``path``, which must not exist, at the end.

    An exception removes the temporary folder. Nothing is flushed to the disk. The folder of a killed writer is deleted
    as in :func:`atomic_path`.
    """

    def create(new: Path) -> int:
        new.mkdir()
        return os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, create) as temporary:
        yield temporary
        temporary.rename(path)


def replace_folder(new: Path, final: Path) -> None:
    """Rename the flushed folder ``new`` to ``final``; the folder that has this name is set aside and then deleted.

    If the process is killed in between, the old or the new folder exists whole, as ``final`` or as
    ``aside_of(final)``, and :func:`recover_folder` completes or undoes the replacement.
    """
    recover_folder(final)
    aside = aside_of(final)
    if os.path.lexists(final):
        final.rename(aside)
    try:
        new.rename(final)
    except OSError:
        recover_folder(final)
        raise
    sync(final.parent)
    with suppress(OSError):  # the replacement is done; the next one tries again
        remove_folder(aside)


def aside_of(final: Path) -> Path:
    """Return the name that the old folder has while :func:`replace_folder` replaces ``final``."""
    return final.with_name(f".{final.name}.replaced")


def recover_folder(final: Path) -> None:
    """Complete a killed :func:`replace_folder`: delete the old folder if ``final`` exists, else rename it back."""
    aside = aside_of(final)
    if os.path.lexists(final):
        remove_folder(aside)
    elif is_folder(aside):
        aside.rename(final)


def is_folder(path: Path) -> bool:
    """Return whether ``path`` is a folder, or a link to a folder, which may be absent."""
    return path.is_dir() or (path.is_symlink() and not path.exists())


def remove_folder(path: Path) -> None:
    """Delete a folder, or a link to a folder. Nothing happens if ``path`` is a file or absent."""
    if is_folder(path):
        remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder, which may be absent. Of a symbolic link, only the link is deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_of(pattern: str) -> str:
    """Return the pattern of the temporary names that :func:`atomic_path` gives to files whose name has ``pattern``."""
    return rf"\.(?:{pattern})\.[0-9a-f]{{8}}\.tmp"


def matching(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Return the sorted paths in ``folder`` whose names match in full; an empty list if ``folder`` is absent."""
    try:
        with os.scandir(folder) as entries:  # makes no Path of each of the thousands of files in a folder of shards
            return sorted(folder / entry.name for entry in entries if name.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _temporary(path: Path, create: Callable[[Path], int]) -> Iterator[Path]:
    """Yield a locked temporary file or folder beside ``path``, and remove it if the block raises an exception."""
    _remove_leftovers(path)
    temporary, descriptor = _create_locked(path, create)
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):  # the error that led here is the one to report
            remove(temporary)
        raise
    finally:
        os.close(descriptor)


def _create_locked(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = create(temporary)
        with suppress(OSError):  # a file system without locks, where no leftovers are removed
            locks.acquire(descriptor, timeout=1.0)
        if os.path.lexists(temporary):
            return temporary, descriptor
        os.close(descriptor)  # another writer removed the file as a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    """Delete the temporary files and folders of ``path`` that killed writers left: those without a lock."""
    name = re.compile(temporary_of(re.escape(path.name)))
    with suppress(OSError):
        for leftover in matching(path.parent, name):
            with suppress(OSError):
                mode = os.O_RDONLY if leftover.is_dir() else os.O_RDWR  # NFS locks only what is open for writing
                descriptor = os.open(leftover, mode | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if locks.acquire(descriptor):
                        remove(leftover)
                finally:
                    os.close(descriptor)


def _follow(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def output_file(text: str) -> Path:
    """Parse an argparse argument that names an output file, and create the folder of the file.

    Raises ArgumentTypeError if the file cannot be written, because the command writes it only at the end of its work.
    """
    path = Path(text)
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{path} is a folder: give the name of a file")
        if is_special(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = _follow(path).parent
        folder.stat()  # the folder of a link's target may be absent
        writable = os.access(folder, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written ({error}): choose another path") from error
    if not writable:
        raise argparse.ArgumentTypeError(
            f"{path} cannot be written, because you have no write permission for {folder}: choose another path"
        )
    return path


def output_ending(*endings: str) -> Callable[[str], Path]:
    """Return :func:`output_file` restricted to file names with one of the extensions ``endings``, e.g. ``".png"``."""

    def checked(text: str) -> Path:
        if Path(text).suffix not in endings:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(endings)}")
        return output_file(text)

    return checked


class FileTail:
    """Reader of the new lines of a file that may not exist yet. A progress bar's carriage return also ends a line."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def new_text(self) -> str:
        """Return the complete lines appended since the last call."""
        try:
            if not self._path.is_file():  # a device has no end
                return ""
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except OSError:
            return ""
        lines = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        self._position += len(lines)
        return lines.decode(errors="replace")


def is_special(path: Path) -> bool:
    """Return whether ``path`` is a pipe, a device or an open file, which a rename must not replace."""
    is_file = path.is_file() and path.absolute().parent not in _DESCRIPTOR_FOLDERS
    return path.exists() and not path.is_dir() and not is_file

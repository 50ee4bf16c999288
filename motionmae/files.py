"""Helpers for files: atomic and durable writing, hashing, and checks of output paths."""

import argparse
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DESCRIPTOR_FOLDERS = (Path("/dev"), Path("/dev/fd"))
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


def write_atomically(path: Path, content: bytes, *, unique: bool = True) -> None:
    """Replace ``path`` by a file with ``content``, see :func:`atomic_path`."""
    with atomic_path(path, unique=unique) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Replace ``path`` by a JSON file with ``content``."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def atomic_path(path: Path, *, durable: bool = True, unique: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` at the end of the block.

    A reader of ``path`` sees the old content or the new content, never a part. An exception removes the temporary file
    (or folder) and leaves ``path`` unchanged. If ``path`` is a symbolic link, its target is replaced. A pipe or a
    device such as ``/dev/stdout`` cannot be replaced, and is yielded itself.

    Args:
        durable: flush the file and its folder to the disk, so that the file survives a power cut.
        unique: give the temporary file a random name, so that several processes can write ``path`` at a time. False
            suits a file with one writer, which then overwrites the temporary file that a killed writer left.
    """
    if _is_special(path):
        yield path
        return
    path = path.resolve()
    random = f".{secrets.token_hex(4)}" if unique else ""
    temporary = path.with_name(f"{path.name}{random}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # the error that led here is the one to report
                temporary.unlink()
        raise
    if durable:
        sync(path.parent)


def output_file(text: str) -> Path:
    """Parse an argparse argument that names an output file, and create the folder of the file.

    Raises ArgumentTypeError if the file cannot be written, because the command writes it only at the end of its work.
    """
    path = Path(text)
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{path} is a folder: give the name of a file")
        if _is_special(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.resolve().parent, os.W_OK | os.X_OK)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written ({error}): choose another path") from error
    if not writable:
        raise argparse.ArgumentTypeError(
            f"{path} cannot be written, because you have no write permission for {path.parent}: choose another path"
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
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except OSError:
            return ""
        lines = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        self._position += len(lines)
        return lines.decode(errors="replace")


def _is_special(path: Path) -> bool:
    """Return whether ``path`` is a pipe, a device or an open file, which a rename must not replace."""
    is_file = path.is_file() and path.absolute().parent not in _DESCRIPTOR_FOLDERS
    return path.exists() and not path.is_dir() and not is_file

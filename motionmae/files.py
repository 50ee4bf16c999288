"""Files: which are videos, and durable ones.

Of a durable file a reader sees the old content or the new, never a part, whenever the writer dies.
"""

import argparse
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mj2"),
        *(".mkv", ".webm", ".ogv", ".flv", ".rm"),
        *(".avi", ".divx", ".asf", ".wmv"),
        *(".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".mxf"),
        ".gif",
    }
)
"""Endings, in lower case, of the files that are taken for videos."""


def hash_files(paths: Iterable[Path]) -> str:
    """The sha256 of a file, or of several end to end."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


_DESCRIPTORS = (Path("/dev"), Path("/dev/fd"))
"""Where this process's open files have names; what stdout was redirected to is to be written on, not replaced."""


def sync_folder(folder: Path) -> None:
    """Make the renames done in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_file(text: str) -> Path:
    """A file that a command writes at the end of its work: ``type=output_file`` finds out before that it can.

    The folder is made if need be.

    Raises:
        ArgumentTypeError: nothing can be written there.
    """
    path = Path(text)
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{path} is a folder: give the name of a file")
        if _is_no_file(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.resolve().parent, os.W_OK | os.X_OK)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written ({error}): choose another place") from error
    if not writable:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: the folder {path.parent} takes no files from you")
    return path


def output_ending(*endings: str) -> Callable[[str], Path]:
    """:func:`output_file` for kinds of files that their names tell: ``type=output_ending(".png", ".pdf")``."""

    def checked(text: str) -> Path:
        if Path(text).suffix not in endings:
            raise argparse.ArgumentTypeError(
                f"{text} is none of {', '.join(endings)}: give the name one of these endings"
            )
        return output_file(text)

    return checked


def _is_no_file(path: Path) -> bool:
    """Whether ``path`` is there as something that must not be replaced, by a rename least of all."""
    return path.exists() and (not path.is_file() or path.absolute().parent in _DESCRIPTORS)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary name beside ``path``, flush it to the disk, rename it into place.

    A link stays, and what it names is replaced; what is no file (a pipe, ``/dev/stdout``) is written to.
    """
    if _is_no_file(path):
        path.write_bytes(content)
        return
    path = path.resolve()
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)

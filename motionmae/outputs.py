"""Check of output files: a command replaces a file only if its content shows that this command wrote it.

The check comes before the work, so that no result is lost. An empty file is replaced. A link that the user names is
followed. A pipe or a device is written to.
"""

import argparse
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import is_special, output_ending, output_file

SIGNATURE = "Written by MotionMAE"
"""Text in the metadata of every picture and video that a command writes."""
_EDGE = 1 << 16  # bytes at the beginning and the end of a file that are searched

Recogniser = Callable[[Path], bool]
"""Function that returns whether this command wrote a file. OSError, ValueError and BadZipFile mean no."""


def refuse_foreign(path: Path, recognise: Recogniser) -> None:
    """Raise UserError if ``path`` is a file with content that ``recognise`` does not know, or a folder."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    if not path.exists() or is_special(path) or path.stat().st_size == 0:
        return
    try:
        known = recognise(path)
    except (OSError, ValueError, zipfile.BadZipFile):
        known = False
    if not known:
        raise UserError(f"{path} was not written by this command: choose another name, or move the file")


def refuse_foreign_names(folder: Path, recognisers: Mapping[str, Recogniser]) -> None:
    """Raise UserError as :func:`refuse_foreign` does for names that a command chooses in ``folder``, or for a link.

    The user did not name these files and does not expect that a link is followed.
    """
    for name, recognise in recognisers.items():
        path = folder / name
        if path.is_symlink():
            raise UserError(f"{path} is a link that this command did not make: use another folder, or move the link")
        refuse_foreign(path, recognise)


def containing(text: str) -> Recogniser:
    """Return a recogniser of files with ``text`` near their beginning or end, where formats keep their metadata."""

    def recognise(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(_EDGE)
            file.seek(max(0, path.stat().st_size - _EDGE))
            return text.encode() in head + b"\0" + file.read(_EDGE)

    return recognise


signed = containing(SIGNATURE)


def json_with(*keys: str) -> Recogniser:
    """Return a recogniser of JSON objects, or of lists of JSON objects, that have all ``keys``."""

    def recognise(path: Path) -> bool:
        from motionmae.json_text import load_json  # pydantic is slow to import

        content: object = load_json(path, object)
        objects = content if isinstance(content, list) else [content]
        return all(isinstance(one, dict) and one.keys() >= set(keys) for one in objects)

    return recognise


def archive_of(*names: str) -> Recogniser:
    """Return a recogniser of npz files that hold exactly the arrays ``names``."""

    def recognise(path: Path) -> bool:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist()) == sorted(f"{name}.npy" for name in names)

    return recognise


def output_argument(recognise: Recogniser, *endings: str) -> Callable[[str], Path]:
    """Return the type of an argparse argument: an output file, with one of ``endings`` if there are any."""
    parse = output_ending(*endings) if endings else output_file

    def checked(text: str) -> Path:
        path = parse(text)
        try:
            refuse_foreign(path, recognise)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return path

    return checked

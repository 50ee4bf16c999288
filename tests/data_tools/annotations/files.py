"""Folders of empty files and small annotation files, and what a reader makes of them."""

from pathlib import Path

import pytest

from data_tools.annotations import Split, read_split
from motionmae.errors import UserError


def touch(folder: Path, *names: str) -> Path:
    """Make empty files (a reader looks at names alone); returns the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def write(path: Path, text: str) -> Path:
    """Write a file, its line ends untouched; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def facts(listing: Split) -> list[tuple[str, bool, int, str]]:
    """(source, whether the file is there, label, class name) of each row."""
    return [(row.source, row.path is not None, row.label, row.class_name) for row in listing.rows]


def refusal(dataset: str, videos: Path, annotations: Path | None, split: str | None) -> str:
    """The sentence with which reading is refused."""
    with pytest.raises(UserError) as caught:
        read_split(dataset, videos, annotations, split)
    return str(caught.value)

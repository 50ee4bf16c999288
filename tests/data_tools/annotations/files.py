"""Folders of empty files, small annotation files, and the results of reading them."""

from pathlib import Path

import pytest

from data_tools.annotations import Split, read_split
from motionmae.errors import UserError


def touch(folder: Path, *names: str) -> Path:
    """Create empty files (readers use only names); returns the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def write(path: Path, text: str) -> Path:
    """Write a file with unchanged line ends; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def facts(split: Split) -> list[tuple[str, bool, int, str]]:
    """(source, whether the file exists, label, class name) of each video."""
    return [(video.source, video.path is not None, video.label, video.class_name) for video in split.videos]


def refusal(dataset: str, videos: Path, annotations: Path | None, split: str | None) -> str:
    """The message of the UserError that reading raises."""
    with pytest.raises(UserError) as caught:
        read_split(dataset, videos, annotations, split)
    return str(caught.value)

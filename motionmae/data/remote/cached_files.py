"""Names of the files in a shard cache, and the removal of unused files.

Other files in the folder are neither counted nor removed. A tar without its index is such a file, because the cache
writes the index before the tar and removes it after the tar.
"""

import contextlib
import re
import stat
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from motionmae.files import temporary_of
from motionmae.locks import acquire
from motionmae.text import get_logger

logger = get_logger(__name__)

SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}\.tar")
"""Names of shards that a cache accepts."""

_STEM = r"[0-9a-f]{32}-[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}"
_SHARD = re.compile(rf"(?P<stem>{_STEM})\.tar")
_PART = re.compile(rf"(?P<stem>{_STEM})\.tar\.(?P<bytes>[1-9][0-9]{{0,15}})\.part")
_INDEX = re.compile(rf"(?P<stem>{_STEM})\.idx\.json")
_LEFTOVER = re.compile(temporary_of(rf"(?P<stem>{_STEM})\.idx\.json"))


class Kind(Enum):
    """Kind of a file in the cache."""

    SHARD = auto()  # a complete shard
    PART = auto()  # a shard in download, or left by a killed process
    INDEX = auto()
    LEFTOVER = auto()  # an unfinished index


_PATTERNS = {Kind.SHARD: _SHARD, Kind.PART: _PART, Kind.INDEX: _INDEX, Kind.LEFTOVER: _LEFTOVER}


class CachedFile(NamedTuple):
    """File that a cache wrote."""

    path: Path
    kind: Kind
    stem: str
    bytes: int  # size; for a part the size of the complete shard
    used: float  # time of the last use in seconds


def scan(folder: Path) -> list[CachedFile]:
    found = list(_scan_names(folder))
    indexed = {one.stem for one in found if one.kind is Kind.INDEX}
    return [one for one in found if one.kind is not Kind.SHARD or one.stem in indexed]


def _scan_names(folder: Path) -> Iterator[CachedFile]:
    for path in folder.iterdir():
        for kind, pattern in _PATTERNS.items():
            name = pattern.fullmatch(path.name)
            with contextlib.suppress(FileNotFoundError):  # another process renamed or removed the file
                if name and stat.S_ISREG((status := path.lstat()).st_mode):
                    size = int(name["bytes"]) if kind is Kind.PART else status.st_size
                    yield CachedFile(path, kind, name["stem"], size, status.st_mtime)


def remove_unused(cached: CachedFile) -> bool:
    """Remove an index alone, or a shard with its index. Return False if a process has a lock on the file."""
    try:
        with cached.path.open("rb") as file:
            if not acquire(file):
                return False
            cached.path.unlink()
            if cached.kind in (Kind.SHARD, Kind.PART):
                cached.path.with_name(f"{cached.stem}.idx.json").unlink(missing_ok=True)
            logger.info("removed %s from the cache to make room", cached.path.name)
            return True
    except FileNotFoundError:
        return False

"""Write a shard under its name, or replace an older one. A killed process leaves the old or the new shard whole.

A shard is two files, and no file system renames two files at once. The order is:

1. ``NAME.tar.tmp`` is written and flushed; the old shard stays.
2. ``.NAME.idx.json.new``, the new index, is written and flushed.
3. ``NAME.tar.tmp`` gets the name ``NAME.tar``. From here on the shard is the new one: a new index without
   ``NAME.tar.tmp`` is the index of ``NAME.tar``.
4. ``.NAME.idx.json.new`` gets the name ``NAME.idx.json``.

:func:`current_index` reads a shard between 3 and 4, and :func:`recover` undoes 1 and 2 or completes 4.
"""

import os
from pathlib import Path

from motionmae.files import sync, write_atomically


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name.removesuffix(".tar") + ".idx.json")


def temporary_path(shard: Path) -> Path:
    """Return the name of a shard that is being written."""
    return shard.with_name(shard.name + ".tmp")


def pending_index(shard: Path) -> Path:
    """Return the name of an index whose shard has its name already, or is about to get it."""
    return shard.with_name(f".{index_path(shard).name}.new")


def current_index(shard: Path) -> Path:
    """Return the path of the index that belongs to ``NAME.tar`` now."""
    pending = pending_index(shard)
    is_current = pending.is_file() and not os.path.lexists(temporary_path(shard))
    return pending if is_current else index_path(shard)


def publish(shard: Path, index: bytes) -> None:
    """Make the flushed file ``temporary_path(shard)`` the shard, with the content ``index`` of its index."""
    try:
        write_atomically(pending_index(shard), index)
        temporary_path(shard).replace(shard)
        sync(shard.parent)
    finally:
        recover(shard)


def recover(shard: Path) -> None:
    """Discard what a killed writer left of an unfinished shard, or complete the replacement that it had begun."""
    pending, temporary = pending_index(shard), temporary_path(shard)
    if os.path.lexists(temporary):
        pending.unlink(missing_ok=True)  # first, because without the temporary file it would be current
        temporary.unlink()
    elif pending.is_file():
        pending.replace(index_path(shard))
        sync(shard.parent)

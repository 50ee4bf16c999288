"""Protocols of the storage of shards, which may be local or remote, and the local implementation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, check_size, load_index
from motionmae.errors import UserError


class OpenedShard(NamedTuple):
    """An open shard that matches its manifest entry."""

    file: BinaryIO
    """Unbuffered file. The store does not delete the shard until the file is closed."""
    columns: dict[str, list[Any]]
    """Columns of the index as :func:`motionmae.data.shards.format.parse_index` returns them."""


class ShardFolder(Protocol):
    """A folder of shards, local or remote."""

    @property
    def location(self) -> str:
        """Path or URL, without a trailing slash."""

    def read(self, name: str) -> bytes:
        """Read a small file of the folder.

        Raises:
            FileNotFoundError: the folder has no such file.
            UserError: the folder cannot be read.
        """


class ShardStore(ShardFolder, Protocol):
    """A folder whose shards can be opened. Safe to use from several threads."""

    def check_present(self, shards: Sequence[ShardEntry]) -> None:
        """Raise UserError if shards are missing. A remote store checks each shard when it is opened."""

    def most_open(self, shards: Sequence[ShardEntry], requested: int) -> int:
        """Return the number of shards, at most ``requested``, that one reader may keep open."""

    def open(self, entry: ShardEntry) -> OpenedShard:
        """Open a shard and its index.

        Raises:
            CorruptSample: the shard or its index is missing or differs from ``entry``.
            UserError: the store cannot deliver the shard.
        """

    def close(self) -> None:
        """Cancel downloads. May be called more than once."""


class LocalFolder:
    """:class:`ShardStore` of a folder on a file system of this machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.location = str(folder)

    def read(self, name: str) -> bytes:
        if not self.folder.is_dir():
            raise UserError(f"the folder of shards {self.folder} does not exist: give the --out folder of make_shards")
        return (self.folder / name).read_bytes()

    def check_present(self, shards: Sequence[ShardEntry]) -> None:
        present = {path.name for path in self.folder.iterdir()}
        missing = [shard.name for shard in shards if shard.name not in present]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(shards)} shards in the manifest of {self.folder} are missing, the first is "
                f"{missing[0]}: copy them again, or run make_shards again to write them"
            )

    def most_open(self, shards: Sequence[ShardEntry], requested: int) -> int:
        return requested

    def open(self, entry: ShardEntry) -> OpenedShard:
        path = self.folder / entry.name
        _, columns = load_index(path, entry)
        check_size(path, entry)
        try:
            return OpenedShard(path.open("rb", buffering=0), columns)
        except OSError as error:
            raise CorruptSample(Reason.UNREADABLE, entry.name, str(error)) from error

    def close(self) -> None:
        pass

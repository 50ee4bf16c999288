"""Resume from memory copies: the newest state whose every share is intact in the memory of some node.

All nodes tell which shares they hold. A state counts if

- each of its shares is on a node of the new attempt, also if another node has only a damaged one;
- no newer attempt has trained past it (:meth:`motionmae.runs.lease.Lease.has_passed`);
- it is at least as new as the newest checkpoint on disk, and the checkpoint on disk that came before it is still there:
  whoever deletes checkpoints to go back does not get the later state from memory.

The shares name the writing ranks and not the reading ones. Any number of ranks can read them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from motionmae.distributed.context import DistributedContext, gather_objects, run_on_rank_zero
from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError, parse_json
from motionmae.runs.checkpoint_manifest import STATE, Checkpoint, FileEntry
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.lease import Lease
from motionmae.runs.memory_folder import MemoryFolder, Share

Schema = TypeVar("Schema")


@dataclass(frozen=True)
class MemoryCheckpoint(Checkpoint):
    """State in the memory of the nodes. ``folder`` has a part of the files on each of them."""

    source: ClassVar[str] = "memory"
    base: str | None  # newest checkpoint on disk when the state was copied
    content: bytes  # of state.json
    readers: dict[str, int]  # rank that reads each file

    @property
    def on_disk(self) -> str | None:
        """Name of the newest checkpoint on disk."""
        return self.base

    def reader(self, index: int, file: str, world: int) -> int:
        """Return a rank whose node holds ``file``."""
        return self.readers[file]

    def state(self, schema: type[Schema] = dict[str, Any]) -> Schema:  # type: ignore[assignment]
        """Parse state.json, or raise a UserError."""
        try:
            return parse_json(self.content, schema)
        except InvalidJsonError as error:
            raise UserError(f"the memory copy {self.folder} is damaged ({error}): delete it on every node") from error


class _Key(NamedTuple):
    """State in memory: which attempt computed it, and where. The newest state is the greatest."""

    position: int
    attempt: int
    world: int


class _Holding(NamedTuple):
    """What a rank found in a share on its node."""

    share: Share
    content: bytes  # of state.json; empty except in the share of rank 0
    defect: str


class _Disk(NamedTuple):
    """Checkpoints on disk: position of the newest, and all names, also those of damaged ones."""

    position: int
    names: frozenset[str]


def find_in_memory(
    folder: MemoryFolder,
    store: CheckpointStore,
    rank: DistributedContext,
    lease: Lease,
    nodes: list[str],
    log_damaged: Callable[[Path, str], None],
) -> MemoryCheckpoint | None:
    """Return the newest state in memory that a resume may take; None if the disk has a newer one or no state counts.

    All ranks must call this. Rank 0 calls ``log_damaged(folder, reason)`` for each damaged share.

    Args:
        nodes: node of each rank.
    """
    here = [other for other, node in enumerate(nodes) if node == nodes[rank.rank]]
    shares = list(folder.shares())
    inventory = gather_objects([(_key(share), share.rank, share.base) for share in shares if rank.rank == here[0]])
    found: dict[_Key, dict[int, str | None]] = {}
    for key, number, base in (each for listed in inventory for each in listed):
        found.setdefault(key, {})[number] = base
    if not found:
        return None
    disk = run_on_rank_zero(rank, lambda: _look_at_disk(store))
    complete = {key: bases[0] for key, bases in found.items() if bases.keys() == set(range(key.world))}
    for key, base in sorted(complete.items(), key=lambda item: item[0], reverse=True):
        if not _counts(key, base, disk, lease):
            continue
        mine = [share for share in shares if _key(share) == key and share.rank % len(here) == here.index(rank.rank)]
        holdings = gather_objects([_verify(folder, share) for share in mine])
        for number, holding in ((number, each) for number, held in enumerate(holdings) for each in held):
            if holding.defect and rank.is_rank_zero:
                log_damaged(
                    folder.folder_of(holding.share), f"{holding.defect}, in memory of the node of rank {number}"
                )
        if checkpoint := _assemble(folder, key, base, holdings):
            return checkpoint
    return None


def _key(share: Share) -> _Key:
    return _Key(share.position, share.attempt, share.world)


def newest_position(store: CheckpointStore) -> int:
    """Return the position of the newest checkpoint with a readable manifest; 0 if there is none."""
    return max((checkpoint.position for checkpoint in store.complete()), default=0)


def _look_at_disk(store: CheckpointStore) -> _Disk:
    damaged = (path.name.removeprefix("damaged-") for path in store.renamed_damaged())
    names = (path.name for path, _ in store.newest_first())
    return _Disk(newest_position(store), frozenset([*names, *damaged]))


def _counts(key: _Key, base: str | None, disk: _Disk, lease: Lease) -> bool:
    has_base = base is None or base in disk.names
    return has_base and key.position >= disk.position and not lease.has_passed(key.attempt, key.position)


def _verify(folder: MemoryFolder, share: Share) -> _Holding:
    defect, content = folder.defect(share), b""
    if not defect and share.rank == 0:
        try:
            content = (folder.folder_of(share) / STATE).read_bytes()
        except OSError as error:
            defect = error.strerror or str(error)
    return _Holding(share, content, defect)


def _assemble(
    folder: MemoryFolder, key: _Key, base: str | None, holdings: list[list[_Holding]]
) -> MemoryCheckpoint | None:
    """Choose a reader for each share among the ranks that found it intact; None if there is none for some share."""
    readers: dict[str, int] = {}
    files: list[FileEntry] = []
    content, step = b"", 0
    load = [0] * len(holdings)
    for number in range(key.world):
        intact = [
            (rank, holding)
            for rank, held in enumerate(holdings)
            for holding in held
            if holding.share.rank == number and not holding.defect
        ]
        if not intact:
            return None
        rank, holding = min(intact, key=lambda pair: load[pair[0]])
        load[rank] += 1
        readers |= {entry.name: rank for entry in holding.share.files}
        files += holding.share.files
        content, step = content or holding.content, holding.share.step
    folder_here = folder.state_folder(key.attempt, key.position)
    return MemoryCheckpoint(folder_here, step, tuple(files), key.position, base, content, readers)

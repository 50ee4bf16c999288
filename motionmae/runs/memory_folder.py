"""Memory copies of a run's state on one node: files in /dev/shm that outlive the ranks, but not the node.

::

    /dev/shm/motionmae-1000/                      of user 1000, closed to others
        vitb_k400-90ab12cd34ef5678/               one run: its name, a hash of its folder and identity
            position-00000120-attempt-3/          state after 120 steps of data, as attempt 3 computed it
                share-00001-of-00004.json         share of rank 1, written last: names, sizes and sha256 of its files
                model-00001-of-00004.safetensors  as in a checkpoint on disk
                optimizer-00001-of-00004.safetensors

A node holds the shares of its own ranks, and those of the ranks of one other node. Only the share of rank 0 has a
state.json. The module does not import torch.
"""

import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from motionmae.files import matching, write_atomically
from motionmae.json_text import InvalidJsonError, JsonModel, load_json
from motionmae.runs.checkpoint_manifest import Checkpoint, Count, FileEntry, PlainName

ROOT = Path("/dev/shm")
ABANDONED_SECONDS = 86_400.0
"""Copies of another run that nobody has written for so long are deleted."""

_TRIES = 10
_STATE = re.compile(r"position-(?P<position>[0-9]{8,})-attempt-(?P<attempt>[0-9]+)")
_SHARE = re.compile(r"share-[0-9]{5,}-of-[0-9]{5,}\.json")
_RUN = re.compile(r".+-[0-9a-f]{16}")


class Share(JsonModel):
    """One rank's part of a state, as its JSON file describes it."""

    attempt: Count
    position: Count  # steps of data consumed
    step: Count
    rank: Count
    world: Annotated[int, Field(ge=1, lt=2**31)]
    base: PlainName | None  # newest checkpoint on disk when the state was copied; only rank 0 knows it for certain
    files: tuple[FileEntry, ...]

    @property
    def name(self) -> str:
        """Name of the file that describes the share."""
        return f"share-{self.rank:05d}-of-{self.world:05d}.json"

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)


@dataclass(frozen=True)
class MemoryFolder:
    """Folder of one run's memory copies on this node; it may be absent."""

    path: Path

    def state_folder(self, attempt: int, position: int) -> Path:
        return self.path / f"position-{position:08d}-attempt-{attempt}"

    def folder_of(self, share: Share) -> Path:
        return self.state_folder(share.attempt, share.position)

    def begin(self, attempt: int, position: int) -> Path:
        """Create the folder of a state for all ranks of the node, or raise an OSError."""
        folder = self.state_folder(attempt, position)
        for _ in range(_TRIES):
            create_private(self.path.parent)
            with suppress(FileNotFoundError):  # another run that ends on this node has just removed its empty parent
                self.path.mkdir(mode=0o700, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
                return folder
        raise FileNotFoundError(f"{self.path.parent} is removed again and again")

    def commit(self, share: Share) -> None:
        """Write the description of a share, whose files are complete."""
        write_atomically(self.folder_of(share) / share.name, share.model_dump_json(indent=1).encode())

    def shares(self) -> Iterator[Share]:
        """Yield every share on this node whose description is intact. The content of its files is not read."""
        if not is_private(self.path.parent):
            return
        for folder in matching(self.path, _STATE):
            for path in matching(folder, _SHARE):
                with suppress(OSError, InvalidJsonError):
                    share = load_json(path, Share)
                    if (self.folder_of(share), share.name) == (folder, path.name):
                        yield share

    def defect(self, share: Share, sizes_only: bool = False) -> str:
        """Return a description of the damage of a share; empty if it is intact. ``sizes_only`` skips the checksums."""
        try:
            return Checkpoint(self.folder_of(share), share.step, share.files, share.position).defect(sizes_only)
        except OSError as error:
            return error.strerror or str(error)

    def remove_others(self, attempt: int, position: int) -> None:
        """Delete the states of this attempt and of older ones, except the one at ``position``."""
        for folder in matching(self.path, _STATE):
            found = _STATE.fullmatch(folder.name)
            if found and int(found["attempt"]) <= attempt and folder != self.state_folder(attempt, position):
                shutil.rmtree(folder, ignore_errors=True)

    def remove_state(self, attempt: int, position: int) -> None:
        shutil.rmtree(self.state_folder(attempt, position), ignore_errors=True)

    def remove(self) -> None:
        """Delete all copies of the run on this node."""
        if is_private(self.path.parent):
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # other runs have copies
                self.path.parent.rmdir()


def memory_folder(run: Path, identity: str) -> MemoryFolder:
    """Return the folder of a run's memory copies on this node.

    Args:
        run: the run folder. A copy of a run folder has other memory copies.
        identity: identity of the run (:attr:`motionmae.runs.lease.Lease.run`). It differs where a run was deleted and
            another one has its name.
    """
    key = hashlib.sha256(f"{run.resolve()}\n{identity}".encode(errors="surrogateescape")).hexdigest()[:16]
    return MemoryFolder(ROOT / f"motionmae-{os.geteuid()}" / f"{run.name}-{key}")


def node_identity(folder: MemoryFolder) -> str:
    """Return a text that is equal for processes that share the memory of :data:`ROOT`.

    Host names do not tell: containers with names of their own may share it, and one host may have several.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {ROOT.stat().st_dev} {folder.path}"


def create_private(path: Path) -> None:
    """Create a folder that only this user can open. Raises an OSError if the name is taken by anything else."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not is_private(path):
        raise PermissionError(f"{path} is not a folder of this user that is closed to others")


def is_private(path: Path) -> bool:
    """Return whether ``path`` is a folder, and no link, that only this user can open.

    /dev/shm is open to all users and sticky: nobody else can rename or replace a folder that belongs to this user.
    """
    try:
        status = path.lstat()
    except OSError:
        return False
    closed = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    return closed and status.st_uid == os.geteuid()


def remove_abandoned(own: MemoryFolder, now: float | None = None) -> None:
    """Delete the memory copies of this user's other runs that nobody has written for a day."""
    if not is_private(own.path.parent):
        return
    for folder in matching(own.path.parent, _RUN):
        with suppress(OSError):
            newest = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
            if folder != own.path and (now or time.time()) - newest > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def free_space(path: Path) -> int:
    """Return the free bytes of the file system of ``path``."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize

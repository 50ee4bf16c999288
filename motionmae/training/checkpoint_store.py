"""Folders of checkpoints on disk: committed by a manifest and a rename, verified by size and sha256.

::

    checkpoints/
        step-00000500/
            manifest.json                          written last: names, sizes and sha256 of the others
            state.json                             step, place in the data stream, config
            model-00000-of-00002.safetensors       weights, shared out over the ranks that wrote them
            optimizer-00000-of-00002.safetensors   AdamW's two moments of the same parameters
        .unfinished-step-00001000                  being written or removed, or what a killed run left of that
        damaged-step-00001500                      failed its verification; kept for a person to look at

No torch here and no ranks: only rank 0 calls these, except for the files it writes into the folder it was given.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from motionmae.data.files import sync_folder, write_atomically
from motionmae.errors import UserError

FORMAT = 1
"""Version of the folder's layout; another one is refused."""

_MANIFEST, _STATE = "manifest.json", "state.json"
_COMPLETE, _UNFINISHED, _DAMAGED = "step-", ".unfinished-", "damaged-"


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    name: str
    bytes: int
    sha256: str
    tensors: tuple[str, ...] = ()
    """Parameters whose tensors it holds."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    folder: Path
    step: int
    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(entry.bytes for entry in self.files)

    def state(self) -> dict[str, Any]:
        """What state.json holds: the trainer's state, the loader's, the config."""
        return json.loads((self.folder / _STATE).read_text())

    def damage(self) -> str:
        """What is wrong with it, nothing if all is well. Reads every byte."""
        with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL
            return next(filter(None, pool.map(self._damage_of, self.files)), "")

    def _damage_of(self, entry: FileEntry) -> str:
        try:
            found = describe(self.folder / entry.name)
        except OSError as error:
            return f"{entry.name}: {error.strerror or error}"
        if found.bytes != entry.bytes:
            return f"{entry.name} has {found.bytes} bytes, its manifest says {entry.bytes}"
        return "" if found.sha256 == entry.sha256 else f"{entry.name} does not have the sha256 of its manifest"


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, below ``folder``."""

    folder: Path

    def complete(self) -> list[Checkpoint]:
        """Committed checkpoints, oldest first; only their manifests are read."""
        found = [read_manifest(path.parent) for path in self.folder.glob(f"{_COMPLETE}*/{_MANIFEST}")]
        return sorted((c for c in found if isinstance(c, Checkpoint)), key=lambda c: c.step)

    def newest_valid(self, report: Callable[[Path, str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where the run has saved none yet.

        Each damaged one met on the way is renamed, so that it neither counts as kept nor blocks its name, and told to
        ``report(folder, reason)``.

        Raises:
            UserError: if there are checkpoints and all are damaged: starting over would throw the run away.
        """
        for folder in sorted(self.folder.glob(f"{_COMPLETE}*"), reverse=True):
            checkpoint = read_manifest(folder)
            reason = checkpoint if isinstance(checkpoint, str) else checkpoint.damage()
            if not reason and isinstance(checkpoint, Checkpoint):
                return checkpoint
            self._set_aside(folder)
            report(folder, reason)
        if damaged := sorted(self.folder.glob(f"{_DAMAGED}*")):
            raise UserError(
                f"no checkpoint in {self.folder} can be read, {len(damaged)} are damaged: put one back from a backup, "
                "or start afresh under another name=..."
            )
        return None

    def begin(self, step: int) -> Path:
        """Make the empty folder in which the checkpoint of ``step`` is written."""
        temporary = self.folder / f"{_UNFINISHED}{_COMPLETE}{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, temporary: Path, step: int, state: dict[str, Any], files: list[FileEntry]) -> Checkpoint:
        """Write state and manifest, flush them, and give the folder its name: from now on the checkpoint exists.

        The other files must have been flushed by those who wrote them.
        """
        write_atomically(temporary / _STATE, json.dumps(state, indent=1).encode())
        entries = [describe(temporary / _STATE), *files]
        content = {"format": FORMAT, "step": step, "files": [asdict(entry) for entry in entries]}
        write_atomically(temporary / _MANIFEST, json.dumps(content, indent=1).encode())
        final = self.folder / f"{_COMPLETE}{step:08d}"
        if final.exists():
            self._set_aside(final)
        temporary.rename(final)
        sync_folder(self.folder)
        return Checkpoint(final, step, tuple(entries))

    def discard_unfinished(self) -> None:
        """Remove what saves and removals that never ended have left behind."""
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)

    def prune(self, keep_last: int, keep_every: int) -> None:
        """Remove all but the newest ``keep_last`` (never fewer than two) and the multiples of ``keep_every``."""
        for old in self.complete()[: -max(keep_last, 2)]:
            if keep_every == 0 or old.step % keep_every:
                # Under that name it is no checkpoint any more, however far the removal gets.
                doomed = old.folder.with_name(_UNFINISHED + old.folder.name)
                with suppress(OSError):  # what cannot be removed now is tried again after the next save
                    old.folder.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _set_aside(self, folder: Path) -> None:
        aside = folder.with_name(_DAMAGED + folder.name)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # a folder that cannot be renamed is passed over all the same
            folder.rename(aside)


def read_manifest(folder: Path) -> Checkpoint | str:
    """The checkpoint in ``folder`` as its manifest describes it, or what is wrong with the manifest.

    Raises:
        UserError: if the checkpoint has another format version.
    """
    try:
        content = json.loads((folder / _MANIFEST).read_text())
        if content["format"] != FORMAT:
            raise UserError(
                f"{folder} is a checkpoint of format {content['format']}, but this version reads format {FORMAT}: "
                "use the version that wrote it"
            )
        files = tuple(FileEntry(**{**entry, "tensors": tuple(entry["tensors"])}) for entry in content["files"])
        return Checkpoint(folder, int(content["step"]), files)
    except UserError:
        raise
    except OSError as error:
        return f"{_MANIFEST}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"{_MANIFEST} is not readable: {error!r}"


def describe(path: Path, tensors: tuple[str, ...] = ()) -> FileEntry:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
    return FileEntry(path.name, size, digest.hexdigest(), tensors)

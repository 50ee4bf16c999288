"""Folders of checkpoints on disk: committed by a manifest and a rename, verified by size and sha256.

::

    checkpoints/
        step-00000500/
            manifest.json                          written last: names, sizes and sha256 of the others
            state.json                             step, place in the data stream, config
            model-00000-of-00002.safetensors       weights, shared out over the ranks that wrote them
            optimizer-00000-of-00002.safetensors   AdamW's two moments of the same parameters
        .unfinished-2-step-00001000                being written by attempt 2 or removed, or what was left of that
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
from typing import Any, TypeAlias

from motionmae.errors import UserError
from motionmae.files import sync_folder, write_atomically
from motionmae.runs.end_reason import StorageError

FORMAT = 1
"""Version of the folder's layout; another one is refused."""

_MANIFEST, _STATE = "manifest.json", "state.json"
_COMPLETE, _UNFINISHED, _DAMAGED = "step-", ".unfinished-", "damaged-"
_MISSING = (FileNotFoundError, NotADirectoryError)
"""Errors that say something of a checkpoint. Others (a stale handle, a server that is away) say it of the storage."""


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
    position: int
    """Steps' worth of samples consumed: rises with every save, also where a run has gone back to an earlier step."""

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(entry.bytes for entry in self.files)

    def state(self) -> dict[str, Any]:
        """What state.json holds: the trainer's state, the loader's, the config."""
        return json.loads((self.folder / _STATE).read_text())

    def damage(self, sizes_only: bool = False) -> str:
        """What is wrong with it, nothing if all is well. Reads every byte, unless only sizes are to be compared.

        Raises:
            OSError: if storage fails, which says nothing of the files.
        """
        if sizes_only:
            return next(filter(None, map(self._wrong_size, self.files)), "")
        with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL
            return next(filter(None, pool.map(self._damage_of, self.files)), "")

    def _wrong_size(self, entry: FileEntry) -> str:
        try:
            found = (self.folder / entry.name).stat().st_size
        except _MISSING as error:
            return f"{entry.name}: {error.strerror or error}"
        return "" if found == entry.bytes else f"{entry.name} has {found} bytes, its manifest says {entry.bytes}"

    def _damage_of(self, entry: FileEntry) -> str:
        if reason := self._wrong_size(entry):
            return reason
        try:
            found = describe(self.folder / entry.name)
        except _MISSING as error:
            return f"{entry.name}: {error.strerror or error}"
        return "" if found.sha256 == entry.sha256 else f"{entry.name} does not have the sha256 of its manifest"


Found: TypeAlias = Checkpoint | str | OSError
"""What is in a checkpoint's folder: the checkpoint, what is wrong with its manifest, or why that cannot be read."""


def damage_of(found: Found, sizes_only: bool = False) -> str:
    """What is wrong with a checkpoint, see :meth:`Checkpoint.damage`."""
    if isinstance(found, OSError):
        raise found
    return found if isinstance(found, str) else found.damage(sizes_only)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, below ``folder``."""

    folder: Path

    def complete(self) -> list[Checkpoint]:
        """Committed checkpoints in the order in which they were saved; only their manifests are read."""
        return [checkpoint for _, checkpoint in reversed(self.newest_first()) if isinstance(checkpoint, Checkpoint)]

    def newest_valid(self, report: Callable[[Path, str], None], before: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where the run has saved none yet.

        Each damaged one met on the way is renamed, so that it neither counts as kept nor blocks its name, and told to
        ``report(folder, reason)``. Damage is what can be seen: files that are missing or other than they were written.

        Args:
            report: is told of damage.
            before: look only at checkpoints of fewer steps or, where none is kept, at the oldest.

        Raises:
            UserError: if there are checkpoints and all are damaged: starting over would throw the run away.
            StorageError: if one cannot be read, which an older one must not replace.
        """
        candidates = self.newest_first()
        if before is not None:
            candidates = [found for found in candidates if step_of(found[0]) < before] or candidates[-1:]
        for folder, checkpoint in candidates:
            try:
                reason = damage_of(checkpoint)
            except OSError as error:
                raise StorageError(
                    f"{folder} cannot be read ({error.strerror or error}) and may be whole, so nothing was changed: "
                    "start again when the storage answers, or move the folder away if it is lost"
                ) from error
            if not reason and isinstance(checkpoint, Checkpoint):
                return checkpoint
            self._set_aside(folder)
            report(folder, reason)
        damaged = self.set_aside()
        if damaged and before is None:
            raise UserError(
                f"no checkpoint in {self.folder} can be read, {len(damaged)} are damaged: put one back from a backup, "
                "or start afresh under another name=..."
            )
        return None

    def newest_first(self) -> list[tuple[Path, Found]]:
        """Every folder that has a checkpoint's name, with what is found in it."""

        def position(pair: tuple[Path, Found]) -> int:
            return pair[1].position if isinstance(pair[1], Checkpoint) else step_of(pair[0])

        found = [(folder, _find(folder)) for folder in self.folder.glob(f"{_COMPLETE}*")]
        return sorted(found, key=position, reverse=True)

    def set_aside(self) -> list[Path]:
        """Damaged checkpoints that were renamed."""
        return sorted(self.folder.glob(f"{_DAMAGED}*"))

    def begin(self, step: int, attempt: int = 0) -> Path:
        """Make the empty folder in which an attempt writes the checkpoint of ``step``."""
        temporary = self.folder / f"{_UNFINISHED}{attempt}-{_COMPLETE}{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, temporary: Path, step: int, state: dict[str, Any], files: list[FileEntry]) -> Checkpoint:
        """Write state and manifest, flush them, and give the folder its name: from now on the checkpoint exists.

        The other files must have been flushed by those who wrote them.
        """
        position = state.get("trainer", {}).get("data_step", step)
        write_atomically(temporary / _STATE, json.dumps(state, indent=1).encode())
        entries = [describe(temporary / _STATE), *files]
        content = {"format": FORMAT, "step": step, "position": position, "files": [asdict(e) for e in entries]}
        write_atomically(temporary / _MANIFEST, json.dumps(content, indent=1).encode())
        final = self.folder / f"{_COMPLETE}{step:08d}"
        if final.exists():  # the run has gone back and come by again
            self._remove(final)
        temporary.rename(final)
        sync_folder(self.folder)
        return Checkpoint(final, step, tuple(entries), position)

    def unfinished(self) -> list[Path]:
        """What saves and removals that never ended, or are under way, have in the folder."""
        return sorted(self.folder.glob(f"{_UNFINISHED}*"))

    def discard_unfinished(self, attempt: int | None = None) -> None:
        """Remove what saves and removals that never ended have left behind: all of it, or one attempt's."""
        for path in self.unfinished():
            if attempt is None or path.name.startswith(f"{_UNFINISHED}{attempt}-"):
                shutil.rmtree(path, ignore_errors=True)

    def prune(self, keep_last: int, keep_every: int) -> None:
        """Remove all but the newest ``keep_last`` (never fewer than two) and the multiples of ``keep_every``."""
        for old in self.complete()[: -max(keep_last, 2)]:
            if keep_every == 0 or old.step % keep_every:
                with suppress(OSError):  # what cannot be removed now is tried again after the next save
                    self._remove(old.folder)

    def _remove(self, folder: Path) -> None:
        # Under that name it is no checkpoint any more, however far the removal gets.
        doomed = folder.with_name(_UNFINISHED + folder.name)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
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
        OSError: if storage fails, which says nothing of the manifest.
    """
    try:
        content = json.loads((folder / _MANIFEST).read_text())
        if content["format"] != FORMAT:
            raise UserError(
                f"{folder} is a checkpoint of format {content['format']}, but this version reads format {FORMAT}: "
                "use the version that wrote it"
            )
        files = tuple(FileEntry(**{**entry, "tensors": tuple(entry["tensors"])}) for entry in content["files"])
        step = int(content["step"])
        return Checkpoint(folder, step, files, int(content.get("position", step)))
    except UserError:
        raise
    except _MISSING as error:
        return f"{_MANIFEST}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"{_MANIFEST} is not readable: {error!r}"


def _find(folder: Path) -> Found:
    try:
        return read_manifest(folder)
    except OSError as error:
        return error


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder; -1 for another name."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def describe(path: Path, tensors: tuple[str, ...] = ()) -> FileEntry:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
    return FileEntry(path.name, size, digest.hexdigest(), tensors)

"""Checkpoint folders on disk: committed by a manifest and a rename, verified by size and sha256.

::

    checkpoints/
        step-00000500/
            manifest.json                          written last: names, sizes and sha256 of the other files
            state.json                             step, position in the data stream, config
            model-00000-of-00002.safetensors       weights, divided among the writing ranks
            optimizer-00000-of-00002.safetensors   AdamW's two moments of the same parameters
        .unfinished-2-step-00001000                written by attempt 2, or being deleted; or left over from either
        damaged-step-00001500                      failed its verification; kept for inspection

The module does not import torch. Only rank 0 calls these functions; the other ranks write files into a folder that
rank 0 created.
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
from motionmae.files import sync, write_atomically
from motionmae.runs.end_reason import StorageError

FORMAT = 1  # version of the folder's layout; other versions are refused

_MANIFEST, _STATE = "manifest.json", "state.json"
_COMPLETE, _UNFINISHED, _DAMAGED = "step-", ".unfinished-", "damaged-"
# Errors that prove damage. Others, such as a stale handle or an unreachable server, are storage failures.
_MISSING = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class FileEntry:
    """File of a checkpoint, as listed in the manifest."""

    name: str
    bytes: int
    sha256: str
    tensors: tuple[str, ...] = ()  # parameters whose tensors the file contains


@dataclass(frozen=True)
class Checkpoint:
    """Committed checkpoint of a run."""

    folder: Path
    step: int
    files: tuple[FileEntry, ...]
    position: int  # steps of data consumed; rises with every save, even after a rollback

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)

    def state(self) -> dict[str, Any]:
        """Read state.json: the state of the trainer and of the loader, and the config."""
        return json.loads((self.folder / _STATE).read_text())

    def defect(self, sizes_only: bool = False) -> str:
        """Return a description of the damage; empty if the checkpoint is intact. ``sizes_only`` skips the checksums.

        An OSError means that storage failed: the files may be intact.
        """

        def file_defect(entry: FileEntry) -> str:
            path = self.folder / entry.name
            try:
                size = path.stat().st_size
                if size != entry.bytes:
                    return f"{entry.name} has {size} bytes, its manifest says {entry.bytes}"
                intact = sizes_only or describe(path).sha256 == entry.sha256
            except _MISSING as error:
                return f"{entry.name}: {error.strerror or error}"
            return "" if intact else f"{entry.name} does not have the sha256 of its manifest"

        with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL
            return next(filter(None, pool.map(file_defect, self.files)), "")


Found: TypeAlias = Checkpoint | str | OSError  # a checkpoint, a defect of its manifest, or the error of reading it


def defect_of(found: Found, sizes_only: bool = False) -> str:
    """Return a description of the damage as :meth:`Checkpoint.defect` does, or raise the error of reading."""
    if isinstance(found, OSError):
        raise found
    return found if isinstance(found, str) else found.defect(sizes_only)


@dataclass(frozen=True)
class CheckpointStore:
    """Checkpoints of one run in ``folder``."""

    folder: Path

    def complete(self) -> list[Checkpoint]:
        """Return the committed checkpoints in the order of saving. Only their manifests are read."""
        return [checkpoint for _, checkpoint in reversed(self.newest_first()) if isinstance(checkpoint, Checkpoint)]

    def newest_valid(self, report: Callable[[Path, str], None], before: int | None = None) -> Checkpoint | None:
        """Find the newest intact checkpoint; None if the run has saved none.

        Newer damaged checkpoints (files missing or changed) are renamed: they no longer count as kept, and a new
        checkpoint can take their name.

        Args:
            report: called with the folder and the defect of each damaged checkpoint.
            before: consider only checkpoints of fewer steps than this; if none is kept, the oldest one.

        Raises:
            UserError: all checkpoints are damaged. A fresh start would discard the run.
            StorageError: a checkpoint cannot be read. An older checkpoint must not replace an unreadable one.
        """
        candidates = self.newest_first()
        if before is not None:
            candidates = [found for found in candidates if step_of(found[0]) < before] or candidates[-1:]
        for folder, checkpoint in candidates:
            try:
                reason = defect_of(checkpoint)
            except OSError as error:
                raise StorageError(
                    f"{folder} cannot be read ({error.strerror or error}) but may be intact, nothing was changed: "
                    "start again when the storage works, or move the folder away if it is lost"
                ) from error
            if not reason and isinstance(checkpoint, Checkpoint):
                return checkpoint
            aside = folder.with_name(_DAMAGED + folder.name)
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(OSError):  # the damaged checkpoint is skipped all the same
                folder.rename(aside)
            report(folder, reason)
        damaged = self.renamed_damaged()
        if damaged and before is None:
            raise UserError(
                f"no checkpoint in {self.folder} can be read ({len(damaged)} damaged): restore one from a backup, "
                "or start a new run with another name=..."
            )
        return None

    def newest_first(self) -> list[tuple[Path, Found]]:
        """Return every folder with a checkpoint's name, and its content, newest first."""

        def position(pair: tuple[Path, Found]) -> int:
            return pair[1].position if isinstance(pair[1], Checkpoint) else step_of(pair[0])

        found = [(folder, read_manifest(folder)) for folder in self.folder.glob(f"{_COMPLETE}*")]
        return sorted(found, key=position, reverse=True)

    def renamed_damaged(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_DAMAGED}*"))

    def begin(self, step: int, attempt: int = 0) -> Path:
        """Create the empty folder in which an attempt writes the checkpoint of ``step``."""
        temporary = self.folder / f"{_UNFINISHED}{attempt}-{_COMPLETE}{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, temporary: Path, step: int, state: dict[str, Any], files: list[FileEntry]) -> Checkpoint:
        """Write and flush state and manifest, then rename the folder. The other files must be flushed already."""
        position = state.get("trainer", {}).get("data_step", step)
        write_atomically(temporary / _STATE, json.dumps(state, indent=1).encode())
        entries = [describe(temporary / _STATE), *files]
        content = {"format": FORMAT, "step": step, "position": position, "files": [asdict(e) for e in entries]}
        write_atomically(temporary / _MANIFEST, json.dumps(content, indent=1).encode())
        final = self.folder / f"{_COMPLETE}{step:08d}"
        if final.exists():  # the run was rolled back and reached the step again
            self._remove(final)
        temporary.rename(final)
        sync(self.folder)
        return Checkpoint(final, step, tuple(entries), position)

    def unfinished(self) -> list[Path]:
        """Return the folders of saves and deletions that were interrupted or are in progress."""
        return sorted(self.folder.glob(f"{_UNFINISHED}*"))

    def discard_unfinished(self, attempt: int | None = None) -> None:
        """Delete the folders of interrupted saves and deletions; with ``attempt``, only the folders of this attempt."""
        for path in self.unfinished():
            if attempt is None or path.name.startswith(f"{_UNFINISHED}{attempt}-"):
                shutil.rmtree(path, ignore_errors=True)

    def prune(self, keep_last: int, keep_every: int) -> None:
        """Delete checkpoints except the newest ``keep_last`` (at least two) and the multiples of ``keep_every``."""
        for old in self.complete()[: -max(keep_last, 2)]:
            if keep_every == 0 or old.step % keep_every:
                with suppress(OSError):  # the next save tries again
                    self._remove(old.folder)

    def _remove(self, folder: Path) -> None:
        # A folder with this name does not count as a checkpoint, even if the deletion is interrupted.
        doomed = folder.with_name(_UNFINISHED + folder.name)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_manifest(folder: Path) -> Found:
    """Read the manifest in ``folder``, or raise a UserError if its format has a different version."""
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
    except OSError as error:
        return error
    except (ValueError, KeyError, TypeError) as error:
        return f"{_MANIFEST} is not readable: {error!r}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder; -1 for any other name."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def describe(path: Path, tensors: tuple[str, ...] = ()) -> FileEntry:
    """Describe a file by size and sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(path.name, file.tell(), digest.hexdigest(), tensors)

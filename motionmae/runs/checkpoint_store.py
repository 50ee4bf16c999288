"""Checkpoint folders on disk: committed by a manifest and a rename, verified by size and sha256.

::

    checkpoints/
        step-00000500/
            manifest.json                          written last: names, sizes and sha256 of the other files
            state.json                             step, position in the data stream, config
            model-00000-of-00002.safetensors       weights, divided among the writing ranks
            optimizer-00000-of-00002.safetensors   AdamW's two moments of the same parameters
        .unfinished-2-step-00001000                written by attempt 2, or left over from it
        .unfinished-step-00000250                  being deleted, or left over from that
        .step-00000500.replaced                    old checkpoint of a step that a rollback saved again, for a moment
        damaged-step-00001500                      failed its verification; kept for inspection

Files and folders with other names are neither renamed nor deleted. A link to a checkpoint in an archive counts as a
checkpoint. Only the link is renamed or deleted.

The module does not import torch. Only rank 0 calls these functions; the other ranks write files into a folder that
rank 0 created.
"""

import errno
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motionmae.errors import UserError
from motionmae.files import (
    is_folder,
    matching,
    recover_folder,
    remove,
    remove_folder,
    replace_folder,
    sync,
    write_atomically,
)
from motionmae.runs.checkpoint_manifest import (
    MANIFEST,
    STATE,
    Checkpoint,
    FileEntry,
    Found,
    defect_of,
    describe,
    manifest_content,
    read_manifest,
)
from motionmae.runs.end_reason import StorageError

# Every name that the store writes. Files and folders with other names are neither renamed nor deleted.
_NAME = r"step-(?P<step>[0-9]+)"
_COMPLETE = re.compile(_NAME)
_REPLACED = re.compile(rf"\.{_NAME}\.replaced")  # see motionmae.files.aside_of
_UNFINISHED = re.compile(rf"\.unfinished-((?P<attempt>[0-9]+)-)?{_NAME}")
_DAMAGED = re.compile(rf"damaged-{_NAME}")


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
            before: consider only checkpoints of fewer steps than this; if there are none, only the oldest checkpoint.

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
            with suppress(OSError):  # the damaged checkpoint is skipped all the same
                _replace(folder, folder.with_name(f"damaged-{_final(folder).name}"))
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

        found = [(folder, read_manifest(folder)) for folder in self._folders()]
        return sorted(found, key=position, reverse=True)

    def _folders(self) -> list[Path]:
        """Return the folders of checkpoints, also the one that a killed commit was about to replace."""
        replaced = [path for path in _ours(self.folder, _REPLACED) if not os.path.lexists(_final(path))]
        return [*_ours(self.folder, _COMPLETE), *replaced]

    def renamed_damaged(self) -> list[Path]:
        return _ours(self.folder, _DAMAGED)

    def begin(self, step: int, attempt: int = 0) -> Path:
        """Create the empty folder in which an attempt writes the checkpoint of ``step``."""
        temporary = self.folder / f".unfinished-{attempt}-step-{step:08d}"
        remove_folder(temporary)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, temporary: Path, step: int, state: dict[str, Any], files: list[FileEntry]) -> Checkpoint:
        """Write and flush state and manifest, then rename the folder. The other files must be flushed already."""
        position = state.get("trainer", {}).get("data_step", step)
        write_atomically(temporary / STATE, json.dumps(state, indent=1).encode())
        entries = [describe(temporary / STATE), *files]
        content = manifest_content(step, position, entries)
        write_atomically(temporary / MANIFEST, json.dumps(content, indent=1).encode())
        final = self.folder / f"step-{step:08d}"
        if final.exists() and not final.is_dir():
            raise FileExistsError(errno.EEXIST, "a file has the name of the checkpoint", str(final))
        replace_folder(temporary, final)  # the folder exists if the run was rolled back and reached the step again
        return Checkpoint(final, step, tuple(entries), position)

    def unfinished(self) -> list[Path]:
        """Return the folders of saves, replacements and deletions that were interrupted or are in progress."""
        replaced = [path for path in _ours(self.folder, _REPLACED) if os.path.lexists(_final(path))]
        return [*_ours(self.folder, _UNFINISHED), *replaced]

    def discard_unfinished(self, attempt: int | None = None) -> None:
        """Delete the folders of interrupted saves and deletions; with ``attempt``, only the folders of this attempt.

        A checkpoint that an interrupted save was about to replace gets its name back.
        """
        for path in _ours(self.folder, _REPLACED):
            with suppress(OSError):
                recover_folder(_final(path))
        for path in _ours(self.folder, _UNFINISHED):
            if attempt is None or path.name.startswith(f".unfinished-{attempt}-"):
                with suppress(OSError):
                    remove(path)

    def prune(self, keep_last: int, keep_every: int, best: int | None = None) -> None:
        """Delete checkpoints except the newest ``keep_last`` (at least two), multiples of ``keep_every``, and ``best``.

        ``best`` is the step of the best checkpoint by validation.
        """
        for old in self.complete()[: -max(keep_last, 2)]:
            if old.step != best and (keep_every == 0 or old.step % keep_every):
                with suppress(OSError):  # the next save tries again
                    _delete(old.folder)


def step_of(folder: Path) -> int:
    """Return the step in the name of a folder that the store wrote; -1 for any other name."""
    for pattern in (_COMPLETE, _REPLACED, _UNFINISHED, _DAMAGED):
        if found := pattern.fullmatch(folder.name):
            return int(found["step"])
    return -1


def _ours(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Return the folders with such a name, and links to folders, which may be absent. Files are left out."""
    return [path for path in matching(folder, name) if is_folder(path)]


def _final(folder: Path) -> Path:
    """Return the name of the checkpoint that ``folder`` is or was."""
    return folder.with_name(re.sub(_REPLACED, r"step-\g<step>", folder.name))


def _replace(folder: Path, to: Path) -> None:
    remove_folder(to)
    folder.rename(to)
    sync(to.parent)


def _delete(folder: Path) -> None:
    # A folder with the new name does not count as a checkpoint, even if the deletion is interrupted.
    doomed = folder.with_name(f".unfinished-{_final(folder).name}")
    _replace(folder, doomed)
    remove(doomed)

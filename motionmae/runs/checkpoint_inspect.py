"""List a run's checkpoints: valid or not, which one a resume would load, and delete broken ones.

The module does not import torch: it works on a login node, also while the job runs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from motionmae.errors import UserError
from motionmae.files import remove
from motionmae.json_text import JsonModel
from motionmae.runs.best_checkpoint import best_in
from motionmae.runs.checkpoint_manifest import Checkpoint, Found, defect_of
from motionmae.runs.checkpoint_store import CheckpointStore, step_of
from motionmae.runs.end_reason import StorageError
from motionmae.runs.lease import run_identity
from motionmae.runs.memory_folder import Share, memory_folder


class CheckpointStatus(StrEnum):
    """Status of a folder in ``checkpoints``."""

    VALID = "valid"  # all bytes match the manifest's checksums
    COMPLETE = "complete"  # all files have the manifest's sizes; their content was not read
    DAMAGED = "damaged"  # a resume skips this checkpoint, or has skipped and renamed it
    # Storage failed to read the checkpoint. Its files may be intact: neither a resume nor a repair touches them.
    UNREADABLE = "unreadable"
    UNFINISHED = "unfinished"  # a write or deletion was interrupted or is in progress
    PARTIAL = "partial"  # a memory copy of which this node holds a part


class _Writer(JsonModel, extra="ignore"):
    writer: dict[str, int | str]


@dataclass(frozen=True)
class InspectedCheckpoint:
    """Status and properties of one folder in ``checkpoints``."""

    folder: Path
    status: CheckpointStatus
    reason: str  # why the checkpoint is damaged or unreadable
    step: int
    bytes: int  # size on disk
    modified: float  # seconds since the epoch
    writer: dict[str, Any]  # world size, ZeRO stage and more of the writing attempt; empty if unreadable
    resumes: bool = False  # whether a resume would load this checkpoint
    link: str = ""  # target, if the folder is a symbolic link; a repair deletes the link and not the target
    best: str = ""  # figure by which this is the best checkpoint, such as "top1 82.50"


def inspect(
    store: CheckpointStore, verify: bool, progress: Callable[[list[Any]], Iterable[Any]] = lambda found: found
) -> list[InspectedCheckpoint]:
    """Inspect every folder of the store, newest first.

    Args:
        verify: read every byte; if False, compare only file sizes.
        progress: wraps the list of checkpoints, for example in a progress bar.
    """
    intact = CheckpointStatus.VALID if verify else CheckpointStatus.COMPLETE
    inspected: list[InspectedCheckpoint] = []
    best = best_in(store)
    for folder, checkpoint in progress(store.newest_first()):
        try:
            reason = defect_of(checkpoint, sizes_only=not verify)
            status = CheckpointStatus.DAMAGED if reason else intact
        except OSError as error:
            reason, status = error.strerror or str(error), CheckpointStatus.UNREADABLE
        decided = any(newer.resumes or newer.status is CheckpointStatus.UNREADABLE for newer in inspected)
        resumes = status is intact and not decided
        found = _describe(folder, status, reason, checkpoint, resumes)
        is_best = best is not None and best.step == found.step
        inspected.append(replace(found, best=f"{best.metric} {best.value:.4g}") if best and is_best else found)
    renamed = [_describe(path, CheckpointStatus.DAMAGED, "renamed by a resume") for path in store.renamed_damaged()]
    unfinished = [_describe(path, CheckpointStatus.UNFINISHED) for path in store.unfinished()]
    return [*inspected, *renamed, *unfinished]


def inspect_memory(run: Path, verify: bool) -> list[InspectedCheckpoint]:
    """Inspect the run's memory copies on this node, newest first. The nodes of a run hold a part each."""
    folder = memory_folder(run, run_identity(run))
    states: dict[Path, list[Share]] = {}
    for share in folder.shares():
        states.setdefault(folder.folder_of(share), []).append(share)
    inspected = []
    for path, shares in sorted(states.items(), reverse=True):
        defects = [defect for share in shares if (defect := folder.defect(share, sizes_only=not verify))]
        world, step = shares[0].world, shares[0].step
        is_whole = {share.rank for share in shares} == set(range(world))
        status = CheckpointStatus.PARTIAL
        if defects or is_whole:
            intact = CheckpointStatus.VALID if verify else CheckpointStatus.COMPLETE
            status = CheckpointStatus.DAMAGED if defects else intact
        reason = defects[0] if defects else f"shares of {len(shares)} of {world} ranks" * (not is_whole)
        size, modified = sum(share.bytes for share in shares), path.stat().st_mtime
        writer = {"world": world, "attempt": shares[0].attempt}
        inspected.append(InspectedCheckpoint(path, status, reason, step, size, modified, writer))
    return inspected


def repair(inspected: list[InspectedCheckpoint]) -> list[Path]:
    """Delete damaged and unfinished folders, and return their paths.

    Args:
        inspected: result of :func:`inspect` with ``verify``. No attempt may be writing.

    Raises:
        UserError: no checkpoint is valid; the damaged checkpoints are then all that is left of the run.
    """
    broken = [found for found in inspected if found.status in (CheckpointStatus.DAMAGED, CheckpointStatus.UNFINISHED)]
    damaged = [found for found in broken if found.status is CheckpointStatus.DAMAGED]
    if damaged and not any(found.status is CheckpointStatus.VALID for found in inspected):
        raise UserError(
            f"all {len(damaged)} checkpoints in {damaged[0].folder.parent} are damaged, nothing was deleted: restore "
            "one from a backup, or delete them by hand to start the run from its first step"
        )
    for found in broken:
        try:
            remove(found.folder)
        except OSError as error:
            raise UserError(
                f"{found.folder} cannot be deleted ({error.strerror}): check its owner and permissions"
            ) from error
    return [found.folder for found in broken]


def _describe(
    folder: Path, status: CheckpointStatus, reason: str = "", checkpoint: Found = "", resumes: bool = False
) -> InspectedCheckpoint:
    writer: dict[str, Any] = {}
    size, modified = 0, 0.0
    link = str(folder.readlink()) if folder.is_symlink() else ""
    step = checkpoint.step if isinstance(checkpoint, Checkpoint) else step_of(folder)
    try:
        modified = folder.stat().st_mtime
        size = sum(path.stat().st_size for path in folder.iterdir())
        writer = Checkpoint(folder, step, (), step).state(_Writer).writer
    except (OSError, StorageError, UserError):
        pass  # damaged, unfinished, or deleted meanwhile
    return InspectedCheckpoint(folder, status, reason, step, size, modified, writer, resumes, link)

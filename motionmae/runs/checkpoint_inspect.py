"""The checkpoints of a run as a person asks for them: which are whole, which one a resume takes, and cleaning up.

No torch here: it works on a login node, beside a running job.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from motionmae.errors import UserError
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore, Found, damage_of, step_of


class Condition(str, Enum):
    """What a folder below ``checkpoints`` holds."""

    VALID = "valid"
    """Every byte is as it was written."""
    COMPLETE = "complete"
    """Its files are there in their full sizes; their content was not compared."""
    DAMAGED = "damaged"
    """A resume passes over it, or did."""
    UNREADABLE = "unreadable"
    """Storage would not give it, and it may be whole: neither a resume nor a repair touches it."""
    UNFINISHED = "unfinished"
    """A write or a removal that was interrupted, or is under way."""

    @property
    def usable(self) -> bool:
        """Whether a resume may take it."""
        return self in (Condition.VALID, Condition.COMPLETE)


@dataclass(frozen=True)
class Finding:
    """One folder below ``checkpoints``."""

    folder: Path
    condition: Condition
    reason: str
    """Why it is damaged, or cannot be read."""
    step: int
    bytes: int
    """On the disk."""
    modified: float
    """Seconds since the epoch."""
    writer: dict[str, Any]
    """World size, ZeRO stage and more of the ranks that wrote it, as far as it can be read."""
    resumes: bool = False
    """Whether a resume takes this one."""


def survey(
    store: CheckpointStore, verify: bool, watch: Callable[[list[Any]], Iterable[Any]] = lambda found: found
) -> list[Finding]:
    """Look at every folder of the store, newest first.

    Args:
        store: the run's checkpoints.
        verify: read every byte, in place of comparing sizes.
        watch: wraps the list of what is looked at, e.g. in a progress bar.
    """
    findings: list[Finding] = []
    for folder, checkpoint in watch(store.newest_first()):
        try:
            reason = damage_of(checkpoint, sizes_only=not verify)
            condition = Condition.DAMAGED if reason else Condition.VALID if verify else Condition.COMPLETE
        except OSError as error:
            reason, condition = error.strerror or str(error), Condition.UNREADABLE
        decided = any(earlier.resumes or earlier.condition is Condition.UNREADABLE for earlier in findings)
        resumes = condition.usable and not decided
        findings.append(_finding(folder, condition, reason, checkpoint, resumes))
    findings += [_finding(folder, Condition.DAMAGED, "set aside by a resume") for folder in store.set_aside()]
    findings += [_finding(folder, Condition.UNFINISHED) for folder in store.unfinished()]
    return findings


def repair(findings: list[Finding]) -> list[Path]:
    """Delete what is damaged or unfinished; returns the folders.

    Args:
        findings: of a survey that verified, while nobody writes.

    Raises:
        UserError: if no checkpoint is valid, so that the damaged ones are all there is of the run.
    """
    useless = [found for found in findings if found.condition in (Condition.DAMAGED, Condition.UNFINISHED)]
    damaged = [finding for finding in useless if finding.condition is Condition.DAMAGED]
    if damaged and not any(finding.condition is Condition.VALID for finding in findings):
        raise UserError(
            f"all {len(damaged)} checkpoints in {damaged[0].folder.parent} are damaged, nothing was deleted: put one "
            "back from a backup, or delete them by hand to start the run from its first step"
        )
    for finding in useless:
        try:
            shutil.rmtree(finding.folder)
        except OSError as error:
            raise UserError(f"{finding.folder} cannot be deleted ({error.strerror}): see whose it is") from error
    return [finding.folder for finding in useless]


def _finding(
    folder: Path, condition: Condition, reason: str = "", checkpoint: Found = "", resumes: bool = False
) -> Finding:
    writer: dict[str, Any] = {}
    size, modified = 0, 0.0
    try:
        modified = folder.stat().st_mtime
        size = sum(path.stat().st_size for path in folder.iterdir())
        writer = json.loads((folder / "state.json").read_text())["writer"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # damaged, unfinished, or removed while it was looked at
    step = checkpoint.step if isinstance(checkpoint, Checkpoint) else step_of(folder)
    return Finding(folder, condition, reason, step, size, modified, writer, resumes)

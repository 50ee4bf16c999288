"""A run that saves a checkpoint after rank 0 has looked for the newest one, and before the other ranks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from motionmae.checkpointing import load_weights
from motionmae.evaluation import weights_source
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore
from motionmae.runs.directory import RunFolder


def hide_newest(run: Path) -> tuple[str, str]:
    """Hide the newest checkpoint for :func:`read_while_it_saves`; return the names of the last two checkpoints."""
    before, newest = CheckpointStore(RunFolder(run).checkpoints).complete()[-2:]
    newest.folder.rename(run / newest.folder.name)
    return before.folder.name, newest.folder.name


def read_while_it_saves(run: Path, newest: str, action: Callable[..., Any], *arguments: Any) -> list[str]:
    """Call ``action`` on a rank; return the checkpoints whose weights it read."""
    look, load, read = load_weights.newest_checkpoint, load_weights._read_checkpoint, []

    def look_and_save(folder: RunFolder, step: int | None = None) -> Checkpoint:
        found = look(folder, step)
        if os.environ["RANK"] == "0" and (run / newest).exists():
            (run / newest).rename(folder.checkpoints / newest)
        return found

    def load_and_note(folder: Path) -> Any:
        read.append(folder.name)
        return load(folder)

    load_weights.newest_checkpoint = weights_source.newest_checkpoint = look_and_save
    load_weights._read_checkpoint = load_and_note
    action(*arguments)
    return read

"""A run that trains on while ranks look at it: it saves as soon as rank 0 has looked for its newest checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from motionmae.checkpointing import load_weights
from motionmae.evaluation import load_run
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore
from motionmae.runs.directory import RunFolder


def hide_newest(run: Path) -> tuple[str, str]:
    """Undo the run's last save, for :func:`read_while_it_saves`; the names of the last checkpoint but one and of it."""
    before, newest = CheckpointStore(RunFolder(run).checkpoints).complete()[-2:]
    newest.folder.rename(run / newest.folder.name)
    return before.folder.name, newest.folder.name


def read_while_it_saves(run: Path, newest: str, action: Callable[..., Any], *arguments: Any) -> list[str]:
    """Do ``action`` on a rank; the checkpoints that this rank has read weights of."""
    look, load, read = load_weights.newest_checkpoint, load_weights._read_checkpoint, []

    def look_and_save(folder: RunFolder, step: int | None = None) -> Checkpoint:
        found = look(folder, step)
        if os.environ["RANK"] == "0" and (run / newest).exists():
            (run / newest).rename(folder.checkpoints / newest)
        return found

    def load_and_note(folder: Path) -> Any:
        read.append(folder.name)
        return load(folder)

    load_weights.newest_checkpoint = load_run.newest_checkpoint = look_and_save
    load_weights._read_checkpoint = load_and_note
    action(*arguments)
    return read

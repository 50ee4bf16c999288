"""Check of a resume before its submission, and the settings that a dry run points out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motionmae.config import Config, absolute_paths, flat, load_config
from motionmae.config.resume import check_same_run
from motionmae.errors import UserError
from motionmae.json_text import JsonModel
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import StorageError
from motionmae.runs.lease import current_holder


class _Saved(JsonModel, extra="ignore"):
    """Part of a checkpoint's state.json."""

    config: dict[str, Any]


def check_resume(config: Config) -> None:
    """Raise UserError if the run has a checkpoint or an active attempt with settings that a resume must not change.

    The job makes the same check, but only after the queue. Checkpoints that cannot be read are ignored.
    """
    folder = RunFolder(config.run_folder)
    for checkpoint in reversed(CheckpointStore(folder.checkpoints).complete()):
        try:
            saved = checkpoint.state(_Saved).config
        except (StorageError, UserError):
            continue
        check_same_run(saved, config)
        return
    if (running := _config_of(folder.config)) and current_holder(folder.path):
        check_same_run(running.model_dump(mode="json"), config)


def differences(config: Config) -> Iterator[str]:
    """Yield the settings that differ from the defaults, and from the last attempt of the run, as lines of comments."""
    now = flat(config.model_dump(mode="json"))
    last = _config_of(RunFolder(config.run_folder).config)
    for title, word, other in (("the defaults", "default", Config()), ("the last attempt of this run", "was", last)):
        if other is None:
            continue
        before = flat(other.model_dump(mode="json"))
        changed = [key for key in now if now[key] != before[key]]
        yield f"# {len(changed) or 'no'} settings differ from {title}{':' if changed else ''}"
        width = max(map(len, changed), default=0)
        yield from (f"#   {key:{width}}  {json.dumps(now[key])}  ({word} {json.dumps(before[key])})" for key in changed)


def _config_of(path: Path) -> Config | None:
    try:
        return absolute_paths(load_config(str(path))) if path.is_file() else None
    except UserError:
        return None

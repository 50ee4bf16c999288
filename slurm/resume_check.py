"""Check of a resume before its submission, and the settings that a dry run points out."""

from collections.abc import Iterator
from typing import Any

from motionmae.config import Config, absolute_paths, saved_config
from motionmae.config.differences import describe_differences
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
    if (running := saved_config(folder.config)) and current_holder(folder.path):
        check_same_run(absolute_paths(running).model_dump(mode="json"), config)


def differing_settings(config: Config) -> Iterator[str]:
    """Yield the settings that differ from the defaults, and from the last attempt of the run, as lines of comments."""
    last = saved_config(RunFolder(config.run_folder).config)
    for other in (None, last) if last else (None,):
        yield from (f"# {line}" for line in describe_differences(config, other))

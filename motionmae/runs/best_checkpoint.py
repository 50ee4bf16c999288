"""The best checkpoint of a run by validation, as the newest checkpoint's state.json says. The module needs no torch."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from motionmae.errors import UserError
from motionmae.json_text import JsonModel
from motionmae.runs.checkpoint_manifest import Checkpoint, Count
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.end_reason import StorageError


@dataclass(frozen=True)
class Best:
    """Validation whose figure no other validation of the run has exceeded."""

    step: Count
    metric: Annotated[str, Field(max_length=40)]
    value: float


class _Validation(JsonModel, extra="ignore"):
    best: Best | None = None


class _Trainer(JsonModel, extra="ignore"):
    validation: _Validation = _Validation()


class _Saved(JsonModel, extra="ignore"):
    trainer: _Trainer = _Trainer()


def best_of(checkpoint: Checkpoint) -> Best | None:
    """Return the best validation up to ``checkpoint``; None without validation, or if the state cannot be read."""
    try:
        return checkpoint.state(_Saved).trainer.validation.best
    except (StorageError, UserError):
        return None


def best_in(store: CheckpointStore) -> Best | None:
    """Return the best validation of a run whose checkpoint is in the store; None if there is none."""
    complete = store.complete()
    best = next(filter(None, map(best_of, reversed(complete))), None)
    return best if best and best.step in [checkpoint.step for checkpoint in complete] else None

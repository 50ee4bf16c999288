"""Where an attempt continues: the newest state in the memory of the nodes or on disk, and what it says of the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from motionmae.checkpointing import sharded
from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.checkpointing.memory_resume import find_in_memory, newest_position
from motionmae.config import Config
from motionmae.config.resume import check_same_run
from motionmae.data.loader import ClipLoader, check_same_stream
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.errors import UserError
from motionmae.json_text import JsonModel
from motionmae.runs.checkpoint_manifest import Checkpoint
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.events import EventLog, Kind
from motionmae.text import get_logger
from motionmae.training.state import TrainState, load_validation_record
from motionmae.training.validation.validator import protocol_of
from motionmae.training.validation_record import ValidationRecord

logger = get_logger(__name__)


class SavedTask(JsonModel, extra="ignore"):
    """Part of a checkpoint's state.json (:meth:`motionmae.training.trainer.Trainer.checkpoint_metadata`): the task."""

    task: dict[str, Any] = Field(default_factory=dict)


class SavedSettings(SavedTask):
    """The same, with what a resume may not change."""

    config: dict[str, Any]
    loader: dict[str, Any]


class _SavedTraining(SavedSettings):
    trainer: TrainState


def find_checkpoint(
    store: CheckpointStore,
    rank: DistributedContext,
    copies: MemoryCopies,
    check: Callable[[Checkpoint], object],
    log_damaged: Callable[[Path, str], None],
) -> Checkpoint | None:
    """Return the newest valid state of the run, from memory if it is there; None for a new run.

    All ranks must call this.

    Args:
        check: raises a UserError if the settings of the run differ from those of a state. Without a checkpoint on disk
            a run may start again with other settings, and then leaves its memory copies.
    """

    def look_in_memory() -> Checkpoint | None:
        found = find_in_memory(copies.folder, store, rank, copies.lease, copies.nodes, log_damaged)
        if found is None or (found.base is None and not _fits(found, check, rank)):
            return None
        run_on_rank_zero(rank, store.discard_unfinished)
        return found

    newest = run_on_rank_zero(rank, lambda: newest_position(store))
    if found := look_in_memory():
        return found
    error: UserError | None = None
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = sharded.find_newest(store, rank, log_damaged)
    except UserError as failure:
        error = failure
    is_older = error is not None or run_on_rank_zero(rank, lambda: newest_position(store)) < newest
    if is_older and (found := look_in_memory()):  # damaged ones were renamed
        return found
    if error:
        raise error
    return checkpoint


def _fits(found: Checkpoint, check: Callable[[Checkpoint], object], rank: DistributedContext) -> bool:
    try:
        check(found)
    except UserError as error:
        if rank.is_rank_zero:
            logger.warning("the copy of step %d in memory is not used: %s", found.step, error)
        return False
    return True


def damage_logger(events: EventLog, log: Callable[[str], None]) -> Callable[[Path, str], None]:
    def log_damage(folder: Path, defect: str) -> None:
        events.event(Kind.CHECKPOINT_DAMAGED, events.last_step, path=folder.name, reason=defect)
        log(f"checkpoint {folder.name} is damaged ({defect}): trying another copy or the previous checkpoint")

    return log_damage


def load_train_state(
    checkpoint: Checkpoint | None, store: CheckpointStore, config: Config, rank: DistributedContext, loader: ClipLoader
) -> TrainState:
    """Load the state of a checkpoint, or return a new one; raise a UserError if settings or data differ.

    All ranks must call this.
    """
    state, record = TrainState(), ValidationRecord()
    if checkpoint:
        state = run_on_rank_zero(rank, lambda: check_saved(checkpoint, config, loader)).trainer
        record = load_validation_record(checkpoint, store, rank)
    if config.validation.shards:
        record = record.under(run_on_rank_zero(rank, lambda: protocol_of(config)))
    return replace(state, validation=record)


def is_complete(state: TrainState, config: Config, total_steps: int) -> bool:
    """Return whether a run has nothing left to do: its last step, or early stopping."""
    validation, record = config.validation, state.validation
    early = bool(validation.shards) and 0 < validation.patience <= record.waited
    return (state.step >= total_steps or early) and not (record.owed and validation.shards)


def check_saved(checkpoint: Checkpoint, config: Config, loader: ClipLoader) -> _SavedTraining:
    """Read the state of a checkpoint, or raise a UserError if the settings or data of its run differ."""
    saved = checkpoint.state(_SavedTraining)
    check_same_run(saved.config, config)
    check_same_stream(saved.loader, loader.identity)
    return saved

"""Choice of the state from which an attempt continues: in the memory of the nodes, or on disk."""

from collections.abc import Callable
from pathlib import Path

from motionmae.checkpointing import sharded
from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.checkpointing.memory_resume import find_in_memory, newest_position
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.errors import UserError
from motionmae.runs.checkpoint_manifest import Checkpoint
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.text import get_logger

logger = get_logger(__name__)


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
    newest = run_on_rank_zero(rank, lambda: newest_position(store))
    if found := _find_in_memory(store, rank, copies, check, log_damaged):
        return found
    error: UserError | None = None
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = sharded.find_newest(store, rank, log_damaged)
    except UserError as failure:
        error = failure
    is_older = error is not None or run_on_rank_zero(rank, lambda: newest_position(store)) < newest
    if is_older and (found := _find_in_memory(store, rank, copies, check, log_damaged)):  # damaged ones were renamed
        return found
    if error:
        raise error
    return checkpoint


def _find_in_memory(
    store: CheckpointStore,
    rank: DistributedContext,
    copies: MemoryCopies,
    check: Callable[[Checkpoint], object],
    log_damaged: Callable[[Path, str], None],
) -> Checkpoint | None:
    found = find_in_memory(copies.folder, store, rank, copies.lease, copies.nodes, log_damaged)
    if found and found.base is None:
        try:
            check(found)
        except UserError as error:
            if rank.is_rank_zero:
                logger.warning("the copy of step %d in memory is not used: %s", found.step, error)
            return None
    if found:
        run_on_rank_zero(rank, store.discard_unfinished)
    return found

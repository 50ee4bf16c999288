"""Choice of the state from which an attempt continues: in the memory of the nodes, or on disk."""

from collections.abc import Callable
from pathlib import Path

from motionmae.checkpointing import sharded
from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.checkpointing.memory_resume import find_in_memory
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
    found = find_in_memory(copies.folder, store, rank, copies.lease, copies.nodes, log_damaged)
    if found and found.base is None:
        try:
            check(found)
        except UserError as error:
            if rank.is_rank_zero:
                logger.warning("the copy of step %d in memory is not used: %s", found.step, error)
            found = None
    if found is None:
        return sharded.find_newest(store, rank, log_damaged)
    run_on_rank_zero(rank, store.discard_unfinished)
    return found

"""Rank, world size, and device of this process, and collectives on Python objects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from motionmae.errors import UserError
from motionmae.runs.end_reason import StorageError

Result = TypeVar("Result")


@dataclass(frozen=True)
class DistributedContext:
    """Rank, world size, and device of this process."""

    rank: int
    world: int
    local_rank: int  # rank within the node
    device: torch.device

    @property
    def is_rank_zero(self) -> bool:
        """True on rank 0, which writes the files of the run folder."""
        return self.rank == 0


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the ``value`` of every rank, in rank order, on every rank. All ranks must call this: it is a barrier."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Return rank 0's ``value`` on every rank. All ranks must call this."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def run_on_rank_zero(rank: DistributedContext, action: Callable[[], Result]) -> Result:
    """Call ``action`` on rank 0; return its result, or raise its UserError or StorageError, on every rank.

    All ranks must call this.
    """
    answer: Any = None
    if rank.is_rank_zero:
        try:
            answer = action()
        except (UserError, StorageError) as error:
            answer = error
    answer = broadcast_object(answer)
    if isinstance(answer, UserError):
        answer.already_reported = not rank.is_rank_zero
    if isinstance(answer, (UserError, StorageError)):
        raise answer
    return answer


def rank_zero_first(rank: DistributedContext, action: Callable[[], Result]) -> Result:
    """Call ``action`` on rank 0, then on the others. A UserError of rank 0 is raised on every rank.

    All ranks must call this.
    """
    results: list[Result] = []
    run_on_rank_zero(rank, lambda: results.append(action()))
    return results[0] if results else action()

"""One training process among all of them, and collectives on Python objects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from motionmae.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class DistributedContext:
    """One training process among all of them."""

    rank: int
    """Number of this process, 0 to ``world - 1``."""
    world: int
    """Processes of the run."""
    local_rank: int
    """Number of this process on its node; the index of its GPU."""
    device: torch.device
    """Where the model lives."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, the one that writes the run's files."""
        return self.rank == 0


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The ``value`` of every rank, in rank order, on every rank. Collective, hence also a barrier."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank. Collective."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def run_on_rank_zero(rank: DistributedContext, action: Callable[[], Result]) -> Result:
    """Do ``action`` on rank 0 and return its result on every rank; so with a UserError it raises. Collective."""
    answer: tuple[Any, UserError | None] = (None, None)
    if rank.is_rank_zero:
        try:
            answer = (action(), None)
        except UserError as error:
            answer = (None, error)
    result, refusal = broadcast_object(answer)
    if refusal is not None:
        refusal.already_reported = not rank.is_rank_zero
        raise refusal
    return result


def rank_zero_first(rank: DistributedContext, make: Callable[[], Result]) -> Result:
    """Call ``make`` on every rank, on rank 0 first: the UserError of what is wrong for all is said once. Collective."""
    made: list[Result] = []
    run_on_rank_zero(rank, lambda: made.append(make()))
    return made[0] if made else make()


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device of a rank where ``engine.device`` is ``wanted``.

    Raises:
        UserError: if it is not there.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if gpus == 0:
        raise UserError("engine.device=cuda, but torch finds no GPU here: use engine.device=cpu or a machine with one")
    if local_rank >= gpus:
        raise UserError(
            f"local rank {local_rank} has no GPU of its own, the node shows {gpus}: "
            "start as many ranks a node as it has GPUs, and let every rank see all of them"
        )
    return torch.device("cuda", local_rank)

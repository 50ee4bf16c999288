"""Division of a validation's work over the ranks, in rounds, with a look for stop requests after each round."""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Protocol, TypeVar

from motionmae.distributed.context import DistributedContext, gather_objects

Result = TypeVar("Result")


class Pause(Protocol):
    """What happens around a round, on all ranks together."""

    def begin(self) -> None: ...

    def end(self) -> None:
        """End a round; raise an exception on every rank if the validation must stop here."""


def in_rounds(
    count: int, results: Generator[Result, None, None], rank: DistributedContext, pause: Pause, idle: Callable[[], None]
) -> list[Result]:
    """Return the results of all ranks for items 0 to ``count - 1``, in order. All ranks must call this.

    In each round a rank computes one item. Rank r has items r, r + world, ...

    Args:
        results: this rank's results, computed when the next one is requested; closed at the end, also after a stop.
        idle: called in the rounds in which this rank has no item, where the others may need it.
    """
    mine: list[Result] = []
    with closing(results):
        for number in range(math.ceil(count / rank.world)):
            pause.begin()
            if number * rank.world + rank.rank < count:
                mine.append(next(results))
            else:
                idle()
            pause.end()
    gathered = gather_objects(mine)
    return [gathered[item % rank.world][item // rank.world] for item in range(count)]

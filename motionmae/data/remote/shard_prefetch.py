"""Fetch remote shards before their turn: those of the window being read, then those of the next one, no further.

A rank's thread starts at a place of its own in each window and passes by what another rank is fetching, so that the
ranks of a node share the work. What goes wrong here is only logged: the reader meets it again, and answers for it.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError

from motionmae.data.remote.cache import CacheFullError
from motionmae.data.sampler import EpochSampler
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError

logger = logging.getLogger(__name__)

_PATIENCE = 1.0  # seconds between looks at a full cache


class ShardPrefetcher:
    """The thread that fetches, told by :meth:`reach` how far the reading is.

    Args:
        reader: of remote shards.
        order_of: order of an epoch.
        rank: of this process.
    """

    def __init__(self, reader: ShardReader, order_of: Callable[[int], EpochSampler], rank: int):
        assert reader.cache is not None
        self._cache, self._reader, self._order_of, self._rank = reader.cache, reader, order_of, rank
        self._window: tuple[int, range] = (-1, range(0))  # epoch and positions of the window being read
        self._wanted: list[int] | None = None  # news for the thread: numbers of shards
        self._closed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="shard-lookahead", daemon=True)
        self._thread.start()

    def advance_to(self, order: EpochSampler, position: int) -> None:
        """Say that ``position`` is read now. Shards that neither its window nor the next needs are closed."""
        epoch, positions = self._window
        if order.epoch == epoch and position in positions:
            return
        positions, current = order.window(position)
        self._window = (order.epoch, positions)
        if positions.stop < order.positions:
            _, following = order.window(positions.stop)
        else:
            _, following = self._order_of(order.epoch + 1).window(0)
        with self._news:
            self._wanted = [*self._from_own_place(current), *self._from_own_place(following)]
            self._news.notify()

    def close(self) -> None:
        """End the thread; the reader's transfers must have been ended before."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def _from_own_place(self, shards: list[int]) -> list[int]:
        place = self._rank % len(shards)
        return shards[place:] + shards[:place]

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._wanted is not None)
                wanted, self._wanted = self._wanted, None
            if self._closed or wanted is None:
                return
            self._fetch(wanted)

    def _fetch(self, wanted: list[int]) -> None:
        shards = self._reader.manifest.shards
        spared = [shards[number] for number in wanted]
        self._reader.keep_only(set(wanted))
        pending = deque(wanted)
        while pending:
            if self._closed or self._wanted is not None:  # the reading is further on
                return
            try:
                self._cache.prefetch(shards[pending[0]], spared)
                pending.popleft()
            except CancelledError:
                return
            except CorruptSample as fault:
                logger.warning("looking ahead: %s", fault)
                pending.popleft()
            except CacheFullError:  # the last readers of the former window are about to let go
                self._reader.keep_only(set(wanted))
                with self._news:
                    self._news.wait(_PATIENCE)
            except UserError as error:
                logger.warning("looking ahead stops until the next window of shards: %s", error)
                return

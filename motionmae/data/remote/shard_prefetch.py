"""Prefetch remote shards: the shards of the current shuffle window, then the shards of the next window.

Each rank starts at a different shard of the window and skips shards that another rank is downloading, so that the ranks
of a node share the downloads. Errors are only logged here, because the reader raises the same errors later.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError

from motionmae.data.remote.cache import CacheFullError, ShardCache
from motionmae.data.sampler import EpochSampler
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError

logger = logging.getLogger(__name__)

_FULL_CACHE_POLL_SECONDS = 1.0


class ShardPrefetcher:
    """Background thread that downloads shards. :meth:`advance_to` tells the thread the current shuffle window."""

    def __init__(self, reader: ShardReader, cache: ShardCache, sampler_of: Callable[[int], EpochSampler], rank: int):
        self._reader, self._cache, self._sampler_of, self._rank = reader, cache, sampler_of, rank
        self._window: tuple[int, range] = (-1, range(0))  # epoch and shuffle indices
        self._requested: list[int] | None = None  # numbers of the shards to download, until the thread takes the list
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
        self._thread.start()

    def advance_to(self, sampler: EpochSampler, index: int) -> None:
        """Move to the window that contains ``index``. Shards outside this and the next window are closed."""
        epoch, indices = self._window
        if sampler.epoch == epoch and index in indices:
            return
        indices, current_shards = sampler.window(index)
        self._window = (sampler.epoch, indices)
        if indices.stop < sampler.num_samples:
            _, next_shards = sampler.window(indices.stop)
        else:
            _, next_shards = self._sampler_of(sampler.epoch + 1).window(0)
        with self._changed:
            self._requested = [*self._rotated(current_shards), *self._rotated(next_shards)]
            self._changed.notify()

    def close(self) -> None:
        """End the thread. Close the reader first, because that cancels the downloads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _rotated(self, shards: list[int]) -> list[int]:
        start = self._rank % len(shards)
        return shards[start:] + shards[:start]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._requested is not None)
                requested, self._requested = self._requested, None
            if self._closed or requested is None:
                return
            self._prefetch(requested)

    def _prefetch(self, numbers: list[int]) -> None:
        shards = self._reader.manifest.shards
        protected = [shards[number] for number in numbers]
        self._reader.keep_only(set(numbers))
        pending = deque(numbers)
        while pending:
            if self._closed or self._requested is not None:  # a new list means that the shuffle window has changed
                return
            try:
                self._cache.prefetch(shards[pending[0]], protected)
                pending.popleft()
            except CancelledError:
                return
            except CorruptSample as fault:
                logger.warning("prefetch: %s", fault)
                pending.popleft()
            except CacheFullError:  # readers will soon close the shards of the previous window
                self._reader.keep_only(set(numbers))
                with self._changed:
                    self._changed.wait(_FULL_CACHE_POLL_SECONDS)
            except UserError as error:
                logger.warning("prefetch stops until the next shuffle window: %s", error)
                return

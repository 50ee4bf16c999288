"""Download remote shards ahead of the decoders."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError

from motionmae.data.remote.cache import CacheFullError, ShardCache
from motionmae.data.remote.download import UnreachableError
from motionmae.data.sampler import EpochSampler
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError
from motionmae.text import get_logger

logger = get_logger(__name__)

_FULL_CACHE_POLL_SECONDS = 1.0


class ShardPrefetcher:
    """Background threads that download the shards of the current shuffle window, then those of the next window.

    ``downloads`` threads hide the latency of the network and the limit of a single connection, and a slow shard holds
    up only one of them. Each rank starts at a different shard of the window and skips shards that another rank is
    downloading, so that the ranks of a node share the downloads. Errors are only logged, because the reader raises the
    same errors later.
    """

    def __init__(
        self,
        reader: ShardReader,
        cache: ShardCache,
        sampler_of: Callable[[int], EpochSampler],
        rank: int,
        downloads: int,
    ):
        self._reader, self._cache, self._sampler_of, self._rank = reader, cache, sampler_of, rank
        self._window: tuple[int, range] = (-1, range(0))  # epoch and shuffle indices
        self._wanted: list[int] = []  # numbers of the shards of the current window and the next
        self._pending: deque[int] = deque()  # those that no thread has taken
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"shard-prefetch-{number}", daemon=True)
            for number in range(downloads)
        ]
        for thread in self._threads:
            thread.start()

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
            self._wanted = [*self._rotated(current_shards), *self._rotated(next_shards)]
            self._pending = deque(self._wanted)
            self._changed.notify_all()
        self._reader.keep_only(set(self._wanted))

    def close(self) -> None:
        """End the threads. Close the reader first, because that cancels the downloads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _rotated(self, shards: list[int]) -> list[int]:
        start = self._rank % len(shards)
        return shards[start:] + shards[:start]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._pending)
                if self._closed:
                    return
                number, wanted = self._pending.popleft(), self._wanted
            try:
                self._download(number, wanted)
            except CancelledError:
                return

    def _download(self, number: int, wanted: list[int]) -> None:
        shards = self._reader.manifest.shards
        try:
            self._cache.prefetch(shards[number], [shards[other] for other in wanted])
        except (CorruptSample, UnreachableError) as fault:
            logger.warning("prefetch: %s", fault)
        except CacheFullError:  # readers will soon close the shards of the previous window
            self._reader.keep_only(set(wanted))
            with self._changed:
                if self._wanted is wanted:
                    self._pending.appendleft(number)
                    self._changed.wait(_FULL_CACHE_POLL_SECONDS)
        except UserError as error:
            logger.warning("prefetch stops until the next shuffle window: %s", error)
            with self._changed:
                if self._wanted is wanted:
                    self._pending.clear()

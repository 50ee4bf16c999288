"""The order of an epoch as a pure function of (seed, epoch, position): resuming needs no state and no replay.

Epoch e permutes the shards by H(seed, e) before anything is split, cuts the permuted row into windows of at most
``shuffle_window_shards``, and inside a window runs the samples through a keyed bijection. So each rank touches few shards at a
time, while a sample's neighbours change every epoch. Setting up costs O(shards), a query O(log shards).

The bijection is Black and Rogaway's generalised Feistel network: a number below a * b is a pair (left, right), and
rounds add a keyed hash of one half to the other, modulo a and b in turn. Taking a close to the root of the window's
size makes a * b exceed it by little, so that cycle walking (apply again until the number fits) is rare.
"""

import bisect
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from motionmae.data.rng import keyed_bits

ORDER_VERSION = 1
"""Changes when the same seed would give another order."""

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = tuple((round_ * _GOLDEN) & _WORD for round_ in range(8))
_LEAST_SIDE = 4  # of the number square: in smaller ones eight rounds do not reach all orders alike

Number = TypeVar("Number", int, np.ndarray)


def _mix(value: Number) -> Number:
    """Hash a 64-bit number (SplitMix64's finaliser); an int, or elementwise a uint64 array."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


def _feistel(number: Number, rows: Number, columns: Number, key: Number) -> Number:
    """Bijection of [0, rows * columns), keyed; ints, or elementwise uint64 arrays."""
    left, right = number // columns, number % columns
    for even, odd in zip(_ROUNDS[::2], _ROUNDS[1::2], strict=True):
        left = (left + _mix((right + (key ^ even)) & _WORD) % rows) % rows
        right = (right + _mix((left + (key ^ odd)) & _WORD) % columns) % columns
    return left * columns + right


class EpochSampler:
    """Which sample stands at which position of one epoch.

    Args:
        counts: samples of each shard, in the manifest's order; a sample's id counts through them.
        seed: the run's seed.
        epoch: from 0.
        shuffle_window_shards: most shards whose samples are mixed with each other.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int, epoch: int, shuffle_window_shards: int):
        self.epoch = epoch
        shards = np.asarray(counts, dtype=np.int64)
        key = keyed_bits("shards", seed, epoch)
        numbers = np.arange(len(shards), dtype=np.uint64)
        ranks = _mix(_mix(numbers * np.uint64(_GOLDEN) + np.uint64(key)) ^ np.uint64(key))
        permutation = np.argsort(ranks, kind="stable")
        first_id = np.cumsum(shards) - shards
        ends = np.cumsum(shards[permutation])
        self.positions = int(shards.sum())
        """Samples of the epoch."""
        windows = max(1, math.ceil(len(shards) / shuffle_window_shards))
        bounds = [len(shards) * window // windows for window in range(windows + 1)]  # equal within one shard
        starts = np.concatenate(([0], ends))
        self._shard_start = starts  # (shards + 1,) first position of each permuted shard
        self._shard_shift = first_id[permutation] - starts[:-1]  # position -> id within a permuted shard
        self._window_start = starts[bounds]
        self._permutation, self._bounds = permutation, bounds
        sizes = np.diff(self._window_start)
        rows = np.array([max(_LEAST_SIDE, math.isqrt(size)) for size in sizes.tolist()])
        self._rows = rows.astype(np.uint64)
        self._columns = np.maximum(_LEAST_SIDE, -(-sizes // rows)).astype(np.uint64)
        self._keys = np.array([keyed_bits("window", seed, epoch, window) for window in range(windows)], dtype=np.uint64)
        # bisect on a list is some ten times faster than searchsorted for one number
        self._lists = tuple(
            column.tolist()
            for column in (starts, self._shard_shift, self._window_start, self._rows, self._columns, self._keys)
        )

    def sample(self, position: int) -> int:
        """Id of the sample at ``position``, in [0, samples)."""
        shard_start, shard_shift, window_start, rows, columns, keys = self._lists
        window = bisect.bisect_right(window_start, position) - 1
        start, size = window_start[window], window_start[window + 1] - window_start[window]
        number = position - start
        while True:
            number = _feistel(number, rows[window], columns[window], keys[window])
            if number < size:
                break
        found = start + number
        return found + shard_shift[bisect.bisect_right(shard_start, found) - 1]

    def samples(self, positions: np.ndarray) -> np.ndarray:
        """Ids of many positions: int64 (n,) -> int64 (n,); equals :meth:`sample` of each."""
        window = np.searchsorted(self._window_start, positions, side="right") - 1
        start = self._window_start[window]
        size = (self._window_start[window + 1] - start).astype(np.uint64)
        pick = (self._rows[window], self._columns[window], self._keys[window])
        number = _feistel((positions - start).astype(np.uint64), *pick)
        while len(outside := np.flatnonzero(number >= size)):
            number[outside] = _feistel(number[outside], *(column[outside] for column in pick))
        found = start + number.astype(np.int64)
        return found + self._shard_shift[np.searchsorted(self._shard_start, found, side="right") - 1]

    def following(self, position: int) -> int:
        """The next position of the same window, its first after its last: where a corrupt sample's stand-in is."""
        window_start = self._lists[2]
        window = bisect.bisect_right(window_start, position) - 1
        return position + 1 if position + 1 < window_start[window + 1] else window_start[window]

    def window(self, position: int) -> tuple[range, list[int]]:
        """The positions that are mixed with ``position``, and the numbers of the shards they come from."""
        window_start = self._lists[2]
        window = bisect.bisect_right(window_start, position) - 1
        shards = self._permutation[self._bounds[window] : self._bounds[window + 1]]
        return range(window_start[window], window_start[window + 1]), shards.tolist()

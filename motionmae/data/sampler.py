"""Order of the samples of an epoch, as a pure function of (seed, epoch, shuffle index). A resume needs no state.

The shuffle index counts the samples of an epoch in training order. Epoch e permutes the shards by H(seed, e), divides
the shards into shuffle windows of at most ``shuffle_window_shards``, and shuffles the samples of each window by a keyed
bijection. A rank then reads few shards at a time, and the neighbours of a sample change every epoch. Construction takes
O(shards) time, a query O(log shards).

The bijection is the generalised Feistel network of Black and Rogaway. A number below a * b is a pair (left, right).
Each round adds a keyed hash of one half to the other half, modulo a and b in turn. a is close to the square root of the
window's size, so that a * b is only a little larger than the window's size. Cycle walking, which repeats the bijection
until the number is below the window's size, is therefore rare.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from motionmae.data.rng import keyed_bits

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = tuple((round_ * _GOLDEN) & _WORD for round_ in range(8))
_MIN_FACTOR = 4  # minimum of a and b: with smaller values, eight rounds do not give all orders equally often

Number = TypeVar("Number", int, np.ndarray)


def _mix(value: Number) -> Number:
    """Hash a 64-bit int, or a uint64 array elementwise, with SplitMix64's finaliser."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


def _feistel(number: Number, rows: Number, columns: Number, key: Number) -> Number:
    """Apply the keyed bijection of [0, rows * columns) to an int, or to a uint64 array elementwise."""
    left, right = number // columns, number % columns
    for even, odd in zip(_ROUNDS[::2], _ROUNDS[1::2], strict=True):
        left = (left + _mix((right + (key ^ even)) & _WORD) % rows) % rows
        right = (right + _mix((left + (key ^ odd)) & _WORD) % columns) % columns
    return left * columns + right


def keyed_permutation(size: int, key: int) -> np.ndarray:
    """Return a permutation of [0, size), for small sizes: the order of the keyed hashes of the numbers."""
    numbers = np.arange(size, dtype=np.uint64)
    ranks = _mix(_mix(numbers * np.uint64(_GOLDEN) + np.uint64(key)) ^ np.uint64(key))
    return np.argsort(ranks, kind="stable")


class EpochSampler:
    """Map from the shuffle indices of one epoch to sample ids.

    Args:
        counts: samples of each shard in the order of the manifest. Sample ids run through the shards in this order.
        shuffle_window_shards: maximum number of shards whose samples are shuffled together.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int, epoch: int, shuffle_window_shards: int):
        self.epoch = epoch
        shards = np.asarray(counts, dtype=np.int64)
        permutation = keyed_permutation(len(shards), keyed_bits("shards", seed, epoch))
        first_id = np.cumsum(shards) - shards
        ends = np.cumsum(shards[permutation])
        self.num_samples = int(shards.sum())
        windows = max(1, math.ceil(len(shards) / shuffle_window_shards))
        bounds = [len(shards) * window // windows for window in range(windows + 1)]  # sizes differ by one at most
        starts = np.concatenate(([0], ends))
        self._permutation, self._bounds = permutation, bounds
        # lists: for a single number, bisect on a list is about ten times as fast as searchsorted
        self._shard_start = starts.tolist()  # number of the first sample of each permuted shard
        self._shard_shift = (first_id[permutation] - starts[:-1]).tolist()  # sample id minus number, for each shard
        self._window_start = starts[bounds].tolist()
        sizes = [end - start for start, end in itertools.pairwise(self._window_start)]
        self._rows = [max(_MIN_FACTOR, math.isqrt(size)) for size in sizes]
        self._columns = [max(_MIN_FACTOR, -(-size // rows)) for size, rows in zip(sizes, self._rows, strict=True)]
        self._keys = [keyed_bits("window", seed, epoch, window) for window in range(windows)]

    def sample(self, index: int) -> int:
        """Return the sample id at a shuffle index, both in [0, num_samples)."""
        window = bisect.bisect_right(self._window_start, index) - 1
        start, end = self._window_start[window : window + 2]
        number = index - start
        while True:
            number = _feistel(number, self._rows[window], self._columns[window], self._keys[window])
            if start + number < end:
                break
        found = start + number
        return found + self._shard_shift[bisect.bisect_right(self._shard_start, found) - 1]

    def next_in_window(self, index: int) -> int:
        """Return the next shuffle index of the window, or its first after its last, to replace a corrupt sample."""
        indices, _ = self.window(index)
        return index + 1 if index + 1 < indices.stop else indices.start

    def window(self, index: int) -> tuple[range, list[int]]:
        """Return the shuffle indices and the shard numbers of the shuffle window that contains ``index``."""
        window = bisect.bisect_right(self._window_start, index) - 1
        shards = self._permutation[self._bounds[window] : self._bounds[window + 1]]
        return range(*self._window_start[window : window + 2]), shards.tolist()

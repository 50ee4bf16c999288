import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionmae.data.sampler import EpochSampler, _feistel

counts_lists = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


def samples_at(order, indices):
    """Sample ids at many shuffle indices at once: the same with arrays, which is faster for whole epochs."""
    window_start = np.array(order._window_start)
    window = np.searchsorted(window_start, indices, side="right") - 1
    start = window_start[window]
    size = (window_start[window + 1] - start).astype(np.uint64)
    pick = [np.array(column, np.uint64)[window] for column in (order._rows, order._columns, order._keys)]
    number = _feistel((indices - start).astype(np.uint64), *pick)
    while len(outside := np.flatnonzero(number >= size)):
        number[outside] = _feistel(number[outside], *(column[outside] for column in pick))
    found = start + number.astype(np.int64)
    return found + np.array(order._shard_shift)[np.searchsorted(order._shard_start, found, side="right") - 1]


def whole(counts, seed=0, epoch=0, shuffle_window_shards=64):
    return samples_at(EpochSampler(counts, seed, epoch, shuffle_window_shards), np.arange(sum(counts)))


@given(counts_lists, st.integers(0, 2**63), st.integers(0, 5000), st.integers(1, 15))
def test_every_sample_once_and_one_query_equals_many(counts, seed, epoch, shuffle_window_shards):
    order = EpochSampler(counts, seed, epoch, shuffle_window_shards)
    samples = samples_at(order, np.arange(sum(counts)))
    assert sorted(samples.tolist()) == list(range(sum(counts)))
    assert [order.sample(position) for position in range(sum(counts))] == samples.tolist()


@given(counts_lists, st.integers(0, 100), st.integers(1, 5))
def test_windows_name_the_shards_of_their_samples(counts, epoch, shuffle_window_shards):
    order = EpochSampler(counts, 0, epoch, shuffle_window_shards)
    shard_of = np.repeat(np.arange(len(counts)), counts)
    assert order.num_samples == sum(counts)
    position = 0
    while position < order.num_samples:
        positions, shards = order.window(position)
        assert positions.start == position
        assert order.window(positions.stop - 1) == (positions, shards)
        position = positions.stop
        assert set(shard_of[samples_at(order, np.array(positions))]) == {shard for shard in shards if counts[shard]}


@given(counts_lists, st.integers(0, 100), st.integers(1, 5))
def test_a_window_touches_few_shards_and_replacements_stay_in_it(counts, epoch, shuffle_window_shards):
    order = EpochSampler(counts, 0, epoch, shuffle_window_shards)
    shard_of = np.repeat(np.arange(len(counts)), counts)
    seen, position = set(), 0
    while position < sum(counts):
        window = [position]
        while (following := order.next_in_window(window[-1])) != position:
            window.append(following)
        assert window == list(range(position, position + len(window)))
        shards = {int(shard_of[order.sample(place)]) for place in window}
        assert len(shards) <= shuffle_window_shards
        assert not shards & seen  # so the shards are dealt out to windows whole
        seen |= shards
        position += len(window)


def test_seed_and_epoch_change_the_order():
    orders = [whole([20] * 5, seed, epoch, 2).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(first != second for first, second in itertools.combinations(orders, 2))


def test_the_order_is_the_one_of_this_order_version():
    assert whole([3, 2, 4], seed=5, epoch=7, shuffle_window_shards=2).tolist() == [3, 4, 6, 2, 5, 8, 7, 0, 1]


def windows_of(size, shards, seed, number=1):
    """Ranks of the ids within each of ``number`` windows of ``shards`` shards: (number, shards * size)."""
    count = number * shards
    orders = whole([size] * count, seed, 0, shards).reshape(number, -1)
    return np.argsort(np.argsort(orders, axis=1), axis=1)


def chi2_per_freedom(observed, expected):
    """Deviation of chi2 per degree of freedom from 1, in standard deviations. Near 0 for an even distribution."""
    observed = np.asarray(observed)
    freedom = observed.size - 1
    return (((observed - expected) ** 2 / expected).sum() / freedom - 1) / math.sqrt(2 / freedom)


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7])
def test_small_windows_reach_every_permutation_evenly(size):
    permutations = math.factorial(size)
    found = windows_of(size, 1, seed=0, number=40 * permutations) @ 10 ** np.arange(size)
    _, observed = np.unique(found, return_counts=True)
    assert len(observed) == permutations
    assert abs(chi2_per_freedom(observed, 40)) < 5


@pytest.mark.parametrize(("size", "shards"), [(13, 1), (9, 3), (8, 2), (20, 5)])
def test_samples_fall_on_places_of_their_window_evenly(size, shards):
    number, total = 20_000, size * shards
    observed = np.stack([np.bincount(column, minlength=total) for column in windows_of(size, shards, 3, number).T])
    assert chi2_per_freedom(observed, number / total) < 5


def test_shards_follow_each_other_evenly():
    follows = np.zeros((6, 6))
    for epoch in range(600):
        row = whole([1] * 6, 1, epoch, 1)
        follows[row[:-1], row[1:]] += 1
    assert np.diag(follows).sum() == 0
    assert chi2_per_freedom(follows[~np.eye(6, dtype=bool)], 600 * 5 / 30) < 5


def test_pairs_are_torn_apart():
    """Samples that are adjacent in a shard are as far apart as in a true shuffle."""
    counts = [50] * 8
    total = sum(counts)
    places = [np.argsort(whole(counts, 0, epoch, 8)) for epoch in range(60)]
    distances = np.abs(np.diff(places, axis=1)).ravel()
    # the distance d of two places of a true shuffle has probability 2 (total - d) / (total (total - 1))
    d = np.arange(1, total)
    expected = 2 * (total - d) / (total * (total - 1)) * distances.size
    observed = np.bincount(distances, minlength=total)[1:]
    deciles = np.array_split(d - 1, 10)
    for part in deciles:
        assert abs(observed[part].sum() - expected[part].sum()) < 5 * math.sqrt(expected[part].sum())
    assert abs(observed[0] - expected[0]) < 5 * math.sqrt(expected[0])


def test_ten_million_samples_cost_nothing_to_plan():
    counts = [500] * 20_000
    tracemalloc.start()
    order = EpochSampler(counts, 0, 3, 64)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6  # 3 MB
    start = time.thread_time()
    EpochSampler(counts, 0, 4, 64)
    assert time.thread_time() - start < 1  # 4 ms
    positions = np.random.default_rng(0).integers(0, 10**7, 1000)
    found, seconds = [], []
    for part in np.array_split(positions, 20):  # the least of them: others use this machine too
        start = time.thread_time()
        found += [order.sample(position) for position in part.tolist()]
        seconds.append((time.thread_time() - start) / len(part))
    assert min(seconds) < 20e-6  # 4 us
    assert found == samples_at(order, positions).tolist()

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from motionmae.data.rng import KeyedRandom, keyed_bits, mask_seed


def test_draws_are_the_same_on_every_machine_and_in_every_version():
    random = KeyedRandom("clip", 1, 2, 3, 4)
    assert [random.bits() for _ in range(9)][::4] == [8808202144245168270, 14194293182998959927, 3761581710037465431]
    assert mask_seed(1, 2, 3, 4) == 1657033226437945789


def test_every_part_of_the_key_counts():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0), (-1, 0, 0, 0)]
    assert len({keyed_bits(purpose, *key) for key in keys for purpose in ("clip", "mask")}) == 2 * len(keys)


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=5))
def test_equal_keys_give_equal_draws(key):
    first, second = KeyedRandom("clip", *key), KeyedRandom("clip", *key)
    assert [first.bits() for _ in range(20)] == [second.bits() for _ in range(20)]


@given(st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**40), st.integers(0, 8))
def test_mask_seeds_fit_int64(seed, epoch, sample, repeat):
    assert 0 <= mask_seed(seed, epoch, sample, repeat) < 2**63


def test_uniform_and_below_are_uniform():
    floats = np.array([KeyedRandom("clip", 0, sample).uniform(-1, 3) for sample in range(20000)])
    assert floats.min() >= -1
    assert floats.max() < 3
    random = KeyedRandom("clip", 7)
    counts = np.bincount([random.below(13) for _ in range(26000)], minlength=13)
    for observed, expected in ((np.histogram(floats, 20, (-1, 3))[0], 1000), (counts, 2000)):
        chi2 = ((observed - expected) ** 2 / expected).sum()
        assert chi2 < 2.5 * len(observed), observed  # its mean is len - 1, five standard deviations about 2.5 len


def test_neighbouring_keys_are_independent():
    draws = np.array(
        [[KeyedRandom("clip", 0, 0, sample, repeat).uniform() for repeat in (0, 1)] for sample in range(5000)]
    )
    first, second = draws.T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.06

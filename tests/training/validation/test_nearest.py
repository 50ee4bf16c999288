"""Votes of the nearest training features, worked by hand."""

import numpy as np
import pytest

from motionmae.training.validation.nearest import classify_by_neighbours


def test_neighbours_vote_with_the_exponential_of_their_cosine():
    """Centred training features point to east, north and west. A query a bit north of east: cosines 0.8, 0.6, -0.8."""
    train = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32) + 5
    query = np.array([[0.8, 0.6]], np.float32) + 5
    labels = np.array([0, 1, 2, 1])
    assert classify_by_neighbours(train, labels, query, 1, 0.1).tolist() == [0]
    # exp(0.8 / T) against exp(0.6 / T) + exp(-0.6 / T): 2.23 < 1.82 + 0.55 at T = 1, 54.6 > 20.1 at T = 0.2
    assert classify_by_neighbours(train, labels, query, 4, 1.0).tolist() == [1]
    assert classify_by_neighbours(train, labels, query, 9, 0.2).tolist() == [0]
    assert classify_by_neighbours(train, labels, query, 2, 1.0).tolist() == [0]


def test_lengths_of_features_do_not_count_and_zeros_are_harmless():
    """After centring, the query points north-east: nearer to the long feature than to the short ones."""
    train = np.array([[100, 90], [-100, -90], [1, 0], [-1, 0]], np.float32)
    labels = np.array([3, 1, 0, 0])
    query = np.array([[0.01, 0.01], [0, 0]], np.float32)
    found = classify_by_neighbours(train, labels, query, 1, 0.1)
    assert found.tolist() == [3, 3]  # of equal similarities the first training video counts
    with np.errstate(all="raise"):
        classify_by_neighbours(train, labels, query, 1, 1.0)


@pytest.mark.parametrize(("k", "expected"), [(1, 2), (3, 0), (5, 0), (6, 1)])
def test_so_many_neighbours_vote(k: int, expected: int):
    """Seen from the mean: one of class 2 at 0 degrees, two of class 0 at 10, four of class 1 at 20."""
    degrees = np.array([0, 10, -10, 20, -20, 20, -20, 180, 170, 190, 160, 200, 160, 200], float)
    train = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1).astype(np.float32)
    labels = np.array([2, 0, 0, 1, 1, 1, 1] + [3] * 7)
    query = np.array([[1, 0]], np.float32)
    assert classify_by_neighbours(train, labels, query, k, 10.0).tolist() == [expected]

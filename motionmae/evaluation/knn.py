"""k-nearest-neighbour classification of frozen features."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class KnnResult:
    """How good nearest neighbours are as a classifier."""

    top1: float
    """Percent."""
    chance: float
    """Percent that the most frequent class of the test videos would give."""
    videos: int
    missing: int
    """Test videos that could not be read."""
    train_missing: int
    """Training videos that could not be read."""


def classify_by_neighbours(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    k: int,
    temperature: float,
) -> NDArray[np.int64]:
    """Vote of the ``k`` most similar (cosine) training features, each weighing exp(similarity / temperature).

    Features are centred by the training mean first: those of masked autoencoders share one large component.
    """
    mean = train.mean(0)
    near, far = (part - mean for part in (test, train))
    near, far = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (near, far))
    similarity = near @ far.T  # (test, train)
    best = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(train))]
    votes = np.zeros((len(test), int(train_labels.max()) + 1))
    weights = np.exp(np.take_along_axis(similarity, best, 1) / temperature)
    np.add.at(votes, (np.arange(len(test))[:, None], train_labels[best]), weights)
    return votes.argmax(1)

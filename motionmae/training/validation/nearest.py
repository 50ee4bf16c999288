"""Classification by the nearest training features (k-NN)."""

import numpy as np
from numpy.typing import NDArray


def classify_by_neighbours(
    train: NDArray[np.float32], train_labels: NDArray[np.int64], test: NDArray[np.float32], k: int, temperature: float
) -> NDArray[np.int64]:
    """Classify by a vote of the ``k`` nearest training features, weighted by exp(cosine similarity / temperature).

    The mean of the training features is subtracted, because features of masked autoencoders share a large component.
    """
    mean = train.mean(0)
    centred = (part - mean for part in (test, train))
    queries, keys = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in centred)
    similarity = queries @ keys.T  # (test, train)
    best = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(train))]
    votes = np.zeros((len(test), int(train_labels.max()) + 1))
    weights = np.exp(np.take_along_axis(similarity, best, 1) / temperature)
    np.add.at(votes, (np.arange(len(test))[:, None], train_labels[best]), weights)
    return votes.argmax(1)

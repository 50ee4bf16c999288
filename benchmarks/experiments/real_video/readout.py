"""Classifiers of fixed features. Their settings are chosen on a part of the training videos, never on test videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VALIDATION = 0.25
"""Share of the groups of training videos that choose a setting."""
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weight decays of the logistic regression, on standardised features."""
NEIGHBOURS = (1, 5, 20)

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Classifier = Callable[[Floats, Labels, Floats, float], Labels]


@dataclass(frozen=True)
class Part:
    """Features and labels of some videos."""

    features: Floats  # (N, D)
    labels: Labels  # (N,)
    groups: Sequence[str]  # videos of one group, such as cuts of one recording, stay together

    def of(self, chosen: NDArray[np.bool_]) -> "Part":
        groups = [group for group, taken in zip(self.groups, chosen, strict=True) if taken]
        return Part(self.features[chosen], self.labels[chosen], groups)


def validation_part(groups: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Choose whole groups at random, VALIDATION of them, at least one and not all."""
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError("all training videos are of one group")
    count = min(max(1, round(VALIDATION * len(names))), len(names) - 1)
    chosen = set(np.random.default_rng(seed).permutation(names)[:count].tolist())
    return np.array([group in chosen for group in groups])


def accuracy(
    classify: Classifier, settings: Sequence[float], train: Part, test: Part, seed: int
) -> tuple[float, float]:
    """Choose a setting on the validation part, classify the test videos after all training videos.

    Returns:
        Top-1 in percent, and the setting. Of equally good settings the largest is chosen.
    """
    held = validation_part(train.groups, seed)
    rest, validation = train.of(~held), train.of(held)
    scores = [
        float((classify(rest.features, rest.labels, validation.features, one) == validation.labels).mean())
        for one in settings
    ]
    setting = max(zip(scores, settings, strict=True))[1]
    found = classify(train.features, train.labels, test.features, setting)
    return 100 * float((found == test.labels).mean()), setting


def logistic_regression(features: Floats, labels: Labels, test: Floats, decay: float) -> Labels:
    """Classify by multinomial logistic regression on standardised features: cross-entropy + decay / 2 * |W|^2."""
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    inputs, others = (torch.from_numpy((each - mean) / deviation).double() for each in (features, test))
    targets = torch.from_numpy(labels)
    weights = torch.zeros(features.shape[1], int(labels.max()) + 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(weights.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weights + bias, targets) + decay / 2 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return np.asarray((others @ weights + bias).argmax(1).numpy(), np.int64)


def nearest_neighbours(features: Floats, labels: Labels, test: Floats, count: float) -> Labels:
    """Classify by the most frequent class among the nearest ``count`` in Euclidean distance of standardised features.

    Of classes with as many votes, the one with the lowest number wins.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    inputs, others = ((each - mean) / deviation for each in (features, test))
    distances = np.square(others).sum(1)[:, None] - 2 * others @ inputs.T + np.square(inputs).sum(1)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : int(count)]
    return np.array([np.bincount(labels[row]).argmax() for row in nearest], np.int64)


def most_frequent(train: Part, test: Part) -> float:
    """Return top-1 in percent of always naming the most frequent class of the training videos."""
    return 100 * float((test.labels == np.bincount(train.labels).argmax()).mean())

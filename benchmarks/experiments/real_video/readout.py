"""Classifiers of fixed features. Their settings are chosen on a part of the training videos, never on test videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from motionmae.errors import UserError

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
    mirrored: Floats | None = None  # features of the mirror images (N, D), which then train, too

    def of(self, chosen: NDArray[np.bool_]) -> "Part":
        groups = [group for group, taken in zip(self.groups, chosen, strict=True) if taken]
        mirrored = None if self.mirrored is None else self.mirrored[chosen]
        return Part(self.features[chosen], self.labels[chosen], groups, mirrored)

    def with_others(self, others: "Part") -> "Part":
        both = None
        if self.mirrored is not None and others.mirrored is not None:
            both = np.concatenate([self.mirrored, others.mirrored])
        features = np.concatenate([self.features, others.features])
        labels = np.concatenate([self.labels, others.labels])
        return Part(features, labels, [*self.groups, *others.groups], both)

    def for_training(self) -> tuple[Floats, Labels]:
        """Return features and labels of the videos and of their mirror images, if there are any."""
        if self.mirrored is None:
            return self.features, self.labels
        return np.concatenate([self.features, self.mirrored]), np.concatenate([self.labels, self.labels])


Folds = Sequence[tuple[Part, Part]]
"""Training and test videos, which have no group in common in SPLITS other than ``given``."""


def given(train: Part, test: Part, _: int) -> Folds:
    """Test the test videos, after training on the training videos."""
    return [(train, test)]


def leave_one_out(train: Part, test: Part, _: int) -> Folds:
    """Test each group of all videos once, after training on all other groups."""
    videos = train.with_others(test)
    chosen = [np.array([group == name for group in videos.groups]) for name in sorted(set(videos.groups))]
    return [(videos.of(~one), videos.of(one)) for one in chosen]


def halves(train: Part, test: Part, seed: int) -> Folds:
    """Test a random half of the groups of all videos, after training on the other half."""
    videos = train.with_others(test)
    chosen = random_groups(videos.groups, 0.5, seed)
    return [(videos.of(~chosen), videos.of(chosen))]


SPLITS: dict[str, Callable[[Part, Part, int], Folds]] = {
    "given": given,
    "leave-one-out": leave_one_out,
    "halves": halves,
}


def random_groups(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose whole groups at random, the ``share`` of them, at least one and not all."""
    names = sorted(set(groups))
    if len(names) < 2:
        raise UserError("all training videos are of one group: give another --group")
    count = min(max(1, round(share * len(names))), len(names) - 1)
    chosen = set(np.random.default_rng(seed).permutation(names)[:count].tolist())
    return np.array([group in chosen for group in groups])


def accuracy(classify: Classifier, settings: Sequence[float], folds: Folds, seed: int) -> tuple[float, list[float]]:
    """Classify the test videos of all folds; the training videos of each fold choose its setting.

    Returns:
        Top-1 in percent of all test videos together, and the setting of each fold.
    """
    right, chosen = [], []
    for train, test in folds:
        setting = choose(classify, settings, train, seed) if len(settings) > 1 else settings[0]
        right.append(classify(*train.for_training(), test.features, setting) == test.labels)
        chosen.append(setting)
    return 100 * float(np.concatenate(right).mean()), chosen


def choose(classify: Classifier, settings: Sequence[float], train: Part, seed: int) -> float:
    """Return the setting that is best on VALIDATION of the groups. Of equally good settings the largest is chosen."""
    held = random_groups(train.groups, VALIDATION, seed)
    rest, validation = train.of(~held), train.of(held)
    scores = [
        float((classify(*rest.for_training(), validation.features, one) == validation.labels).mean())
        for one in settings
    ]
    return max(zip(scores, settings, strict=True))[1]


def logistic_regression(features: Floats, labels: Labels, test: Floats, decay: float) -> Labels:
    """Classify by logistic regression on standardised features: mean cross-entropy + decay / 2 * |W|^2."""
    model = LogisticRegression(C=1 / (decay * len(labels)), max_iter=2000)
    return _predicted(model, features, labels, test)


def nearest_neighbours(features: Floats, labels: Labels, test: Floats, count: float) -> Labels:
    """Classify by the most frequent class among the nearest ``count`` in Euclidean distance of standardised features.

    Of classes with as many votes, the one with the lowest number wins.
    """
    return _predicted(KNeighborsClassifier(min(int(count), len(labels))), features, labels, test)


def _predicted(model: ClassifierMixin, features: Floats, labels: Labels, test: Floats) -> Labels:
    """Standardise by the training features, train, and classify the test features.

    More features than videos are first rotated into the space of the training videos. This changes neither the
    predictions of a logistic regression with weight decay nor which training videos are near, and is much faster.
    """
    rotation = [PCA(svd_solver="full")] if features.shape[1] > len(features) else []
    pipeline = make_pipeline(StandardScaler(), *rotation, model)
    pipeline.fit(features.astype(np.float64), labels)
    return np.asarray(pipeline.predict(test.astype(np.float64)), np.int64)


def most_frequent(_: Floats, labels: Labels, test: Floats, __: float) -> Labels:
    """Name the most frequent class of the training videos."""
    return np.full(len(test), np.bincount(labels).argmax(), np.int64)

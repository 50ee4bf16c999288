"""Region similarity J and boundary accuracy F as the official DAVIS-2017 evaluator computes them (semi-supervised).

Only objects in the mask of the first frame are scored. The first and the last frame do not count. Void (255) becomes
background in both masks. A frame in which both masks lack an object counts as J = 1 and F = 1. Means are over objects,
not over sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

VOID = 255
BOUNDARY_SHARE = 0.008  # largest distance between matching boundaries, as a share of the image diagonal

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """J or F of one object, summarised over the counted frames."""

    mean: float
    recall: float  # fraction of the frames whose value exceeds 0.5
    decay: float  # mean of the first quarter of the frames minus mean of the last quarter


def region_similarity(truth: Mask, found: Mask) -> float:
    """Return J: intersection over union, or 1 if both masks are empty."""
    union = np.logical_or(truth, found).sum()
    return float(np.logical_and(truth, found).sum() / union) if union else 1.0


def boundary_accuracy(truth: Mask, found: Mask) -> float:
    """Return F, the harmonic mean of precision and recall of boundary pixels. Pixels match within a disc."""
    radius = int(np.ceil(BOUNDARY_SHARE * np.linalg.norm(truth.shape)))
    row, column = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (row**2 + column**2 <= radius**2).astype(np.uint8)
    ours, theirs = boundary(found), boundary(truth)
    count, true_count = ours.sum(), theirs.sum()
    if not count or not true_count:
        return float(count == true_count)
    precision = (ours & (cv2.dilate(theirs.astype(np.uint8), disc) > 0)).sum() / count
    recall = (theirs & (cv2.dilate(ours.astype(np.uint8), disc) > 0)).sum() / true_count
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: Mask) -> Mask:
    """Return the pixels that differ from their right, lower or lower right neighbour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")  # pixels at the edge have no neighbour that differs
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def score_sequence(truth: NDArray[np.uint8], found: NDArray[np.uint8]) -> dict[int, dict[str, Score]]:
    """Return J and F of every object. The masks are object numbers (frames, H, W); 255 in ``truth`` is void."""
    void = truth == VOID
    truth, found = np.where(void, 0, truth), np.where(void, 0, found)
    scores = {}
    for number in range(1, int(truth[0].max()) + 1):
        pairs = [(true == number, ours == number) for true, ours in zip(truth[1:-1], found[1:-1], strict=True)]
        scores[number] = {
            "J": summarise([region_similarity(*pair) for pair in pairs]),
            "F": summarise([boundary_accuracy(*pair) for pair in pairs]),
        }
    return scores


def summarise(values: list[float]) -> Score:
    """Return mean, recall and decay over frames. The quarters overlap by a frame, as in the official evaluator."""
    frames = np.array(values)
    bounds = np.round(np.linspace(1, len(frames), 5) + 1e-10).astype(int) - 1
    first, last = frames[: bounds[1] + 1], frames[bounds[3] : bounds[4] + 1]
    return Score(float(frames.mean()), float((frames > 0.5).mean()), float(first.mean() - last.mean()))


def global_means(objects: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    """Return the seven metrics of the official evaluator, which are means over objects."""
    figures = {}
    for measure in ("J", "F"):
        for statistic in ("mean", "recall", "decay"):
            values = [getattr(scores[measure], statistic) for scores in objects.values()]
            figures[f"{measure}-{statistic.capitalize()}"] = float(np.mean(values))
    return {"J&F-Mean": (figures["J-Mean"] + figures["F-Mean"]) / 2, **figures}

"""Protocol of a measurement on held-out videos, and its result."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from motionmae.errors import UserError
from motionmae.runs.end_reason import StorageError
from motionmae.training.validation.rounds import Pause

FAILURES = (OSError, UserError, StorageError)
"""Errors of the storage or of the shards, which never end training."""

Figures = dict[str, float]
"""Figures by name: loss, top1 and top5 in per cent, loss_HEAD, explained_HEAD, knn in per cent."""


class UnreadableShardsError(Exception):
    """Failure to read the held-out shards, raised on every rank. Training continues."""


@dataclass(frozen=True)
class Measured:
    """Result of a measurement, the same on every rank and for every number of ranks."""

    figures: Figures
    videos: int  # number of videos or clips that were read
    missing: int = 0  # number of unreadable videos, which count neither as correct nor as wrong
    confusion: NDArray[np.int64] | None = field(default=None, compare=False)  # rows: true class


class Measurement(Protocol):
    """Measurement of the weights of a run on held-out videos."""

    def measure(self, model: nn.Module, pause: Pause) -> Measured:
        """Measure ``model``, which is in evaluation mode. All ranks must call this.

        Raises:
            UnreadableShardsError: on every rank, a rank could not read the shards.
        """

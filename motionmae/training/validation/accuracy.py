"""Loss and accuracy of a classifier on held-out videos, as `motionmae test` measures them.

Videos do not share forward passes: the figures depend on neither the ranks nor the other videos.
"""

import math
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from motionmae.config import Config
from motionmae.data.held_out.read_ahead import UNREADABLE, read_ahead
from motionmae.data.held_out.shards import match_classes
from motionmae.data.held_out.views import read_views
from motionmae.data.open_shards import open_reader
from motionmae.distributed.context import DistributedContext
from motionmae.errors import UserError
from motionmae.training.validation.measure import FAILURES, Measured, UnreadableShardsError
from motionmae.training.validation.rounds import Pause, in_rounds


class Prediction(NamedTuple):
    """Prediction for a video, beside its true class."""

    label: int  # number of the true class among the classes of the model
    predicted: int  # number of the most probable class
    place: int  # place of the true class in the order of probability, from 0
    loss: float  # negative logarithm of the probability of the true class


class Accuracy:
    """Measurement of fine-tuning: loss, top-1 and top-5 accuracy on ``validation.shards``.

    Args:
        sharded: whether the ranks must run the model together, at ZeRO 3.
    """

    def __init__(
        self, config: Config, class_names: tuple[str, ...], rank: DistributedContext, *, sharded: bool
    ) -> None:
        views = config.validation
        self._config = config.updated({"test.clips": views.clips, "test.crops": views.crops})
        self._rank, self._sharded, self._classes = rank, sharded, len(class_names)
        self._reader = open_reader(views.shards, data=config.data)
        self._labels = match_classes(class_names, self._reader.manifest.class_names, views.shards)

    def measure(self, model: nn.Module, pause: Pause) -> Measured:
        samples = self._reader.manifest.samples
        found = in_rounds(samples, self._outcomes(model), self._rank, pause, lambda: self._idle(model))
        if failed := next((outcome for outcome in found if isinstance(outcome, str)), ""):
            raise UnreadableShardsError(failed)
        read = [outcome for outcome in found if isinstance(outcome, Prediction)]
        if not read:
            raise UnreadableShardsError(f"none of the {samples} videos can be read")
        return summarise(read, missing=samples - len(read), classes=self._classes)

    def _outcomes(self, model: nn.Module) -> Generator[Prediction | str | None, None, None]:
        """Yield this rank's predictions; None for an unreadable video, and a text for another failure."""
        mine = range(self._rank.rank, self._reader.manifest.samples, self._rank.world)
        threads = self._config.data.threads
        for _, video in read_ahead(mine, self._read, threads, caught=(*UNREADABLE, *FAILURES)):
            if isinstance(video, Exception):
                self._idle(model)
                yield None if isinstance(video, UNREADABLE) else str(video)
            else:
                views, label = video
                yield predict(self._classify(model, torch.from_numpy(views)), label)

    def _read(self, sample: int) -> tuple[NDArray[np.uint8], int]:
        """Read the views of a video and the number of its class among the classes of the model."""
        meta = self._reader.read_meta(sample)
        if not 0 <= meta.label < len(self._labels):
            raise UserError(f"{meta.where} in {self._reader.folder} has no class: give shards of a split with labels")
        return read_views(self._reader, sample, self._config), int(self._labels[meta.label])

    def _classify(self, model: nn.Module, views: torch.Tensor) -> NDArray[np.float32]:
        """Return the mean softmax over the views, as the multi-view test computes it."""
        parts = views.split(self._config.validation.batch_size)
        logits = torch.cat([model(part.to(self._rank.device)).float().cpu() for part in parts])
        return logits.softmax(1).mean(0).numpy()

    def _idle(self, model: nn.Module) -> None:
        if self._sharded:
            clip, views = self._config.clip, self._config.test.clips * self._config.test.crops
            self._classify(model, torch.zeros(views, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8))


def predict(probabilities: NDArray[np.float32], label: int) -> Prediction:
    ranking = np.argsort(-probabilities, kind="stable")
    place = int(np.flatnonzero(ranking == label)[0])
    loss = -math.log(max(float(probabilities[label]), 1e-38))
    return Prediction(label, int(ranking[0]), place, loss)


def summarise(read: list[Prediction], missing: int, classes: int) -> Measured:
    """Return the figures and the confusion matrix of the predictions, in the order of the videos."""
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, ([each.label for each in read], [each.predicted for each in read]), 1)
    figures = {
        "loss": math.fsum(each.loss for each in read) / len(read),
        "top1": 100 * sum(each.place < 1 for each in read) / len(read),
        "top5": 100 * sum(each.place < 5 for each in read) / len(read),
    }
    return Measured(figures, len(read), missing, confusion)

"""k-NN accuracy of frozen features during pre-training, as `motionmae knn` measures it."""

from collections.abc import Generator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from motionmae.config import Config
from motionmae.data.clip_decoder import read_clip
from motionmae.data.held_out.read_ahead import UNREADABLE, read_ahead
from motionmae.data.held_out.shards import knn_test, match_classes
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.reader import ShardReader
from motionmae.distributed.context import DistributedContext
from motionmae.errors import UserError
from motionmae.models.cubes import cut_patches
from motionmae.training.validation.measure import FAILURES, Measured, UnreadableShardsError
from motionmae.training.validation.nearest import classify_by_neighbours
from motionmae.training.validation.rounds import Pause, in_rounds

Feature = tuple[int, NDArray[np.float32]]
"""Class of a video, as its shards number it, and the mean of the encoder's tokens for its central clip, (width,)."""


class KnnAccuracy:
    """Measurement of pre-training: accuracy of the nearest training videos on frozen features."""

    def __init__(self, config: Config, rank: DistributedContext, *, sharded: bool) -> None:
        self._config, self._rank, self._sharded = config, rank, sharded
        shards = (config.validation.knn_train, knn_test(config))
        self._train, self._test = (open_reader(folder, data=config.data) for folder in shards)
        names = self._train.manifest.class_names
        self._labels = match_classes(names, self._test.manifest.class_names, shards[1])

    def measure(self, model: nn.Module, pause: Pause) -> Measured:
        (train, _), (test, missing) = (self._features(model, reader, pause) for reader in (self._train, self._test))
        truth = np.array([self._labels[label] for label, _ in test])
        labels = np.array([label for label, _ in train])
        rows = [np.stack([feature for _, feature in part]) for part in (train, test)]
        validation = self._config.validation
        found = classify_by_neighbours(rows[0], labels, rows[1], validation.knn_k, validation.knn_temperature)
        return Measured({"knn": float(100 * (found == truth).mean())}, len(test), missing)

    def _features(self, model: nn.Module, reader: ShardReader, pause: Pause) -> tuple[list[Feature], int]:
        """Return the features of all readable videos, and the number of the others."""
        samples = reader.manifest.samples
        found = in_rounds(samples, self._own(model, reader), self._rank, pause, lambda: self._idle(model))
        if failed := next((feature for feature in found if isinstance(feature, str)), ""):
            raise UnreadableShardsError(failed)
        read = [feature for feature in found if isinstance(feature, tuple)]
        if not read:
            raise UnreadableShardsError(f"none of the {samples} videos of {reader.folder} can be read")
        return read, samples - len(read)

    def _own(self, model: nn.Module, reader: ShardReader) -> Generator[Feature | str | None, None, None]:
        def read(sample: int) -> tuple[int, torch.Tensor]:
            meta = reader.read_meta(sample)
            if not 0 <= meta.label < len(reader.manifest.class_names):
                raise UserError(f"{meta.where} in {reader.folder} has no class: give shards of a split with labels")
            return meta.label, read_clip(reader, sample, self._config.clip)

        mine = range(self._rank.rank, reader.manifest.samples, self._rank.world)
        for _, video in read_ahead(mine, read, self._config.data.threads, caught=(*UNREADABLE, *FAILURES)):
            if isinstance(video, Exception):
                self._idle(model)
                yield None if isinstance(video, UNREADABLE) else str(video)
            else:
                yield video[0], self._encode(model, video[1][None])

    def _encode(self, model: nn.Module, clips: torch.Tensor) -> NDArray[np.float32]:
        patches = cut_patches(clips.to(self._rank.device), self._config.clip.cube_size)
        encoder = model.get_submodule("encoder")
        return encoder(patches).mean(1).float().cpu().numpy()[0]

    def _idle(self, model: nn.Module) -> None:
        if self._sharded:
            clip = self._config.clip
            self._encode(model, torch.zeros(1, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8))

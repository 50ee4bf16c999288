"""Clips in the exact order of a training, for other training loops: a torch Dataset with its sampler.

The order is that of :class:`motionmae.data.loader.ClipLoader`: a pure function of the seed, the same for every number
of ranks. A batch of a DataLoader with this sampler is a micro-batch of that loader. A resume needs only the step.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from motionmae.config import Config
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.data.clip_decoder import ClipRequest, SampleDecoder
from motionmae.data.loader import check_same_stream, stream_identity
from motionmae.data.mixture.order import Order, make_order
from motionmae.data.open_shards import check_stored, load_sources, open_samples
from motionmae.data.rng import mask_seed
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shared_buffers import SharedBuffer
from motionmae.distributed.rendezvous import rank_environment
from motionmae.errors import UserError


class Clip(NamedTuple):
    """Clip of a video. A DataLoader stacks each field."""

    clip: torch.Tensor  # uint8 (T, size, size, 3)
    label: int  # number of the class; -1 if the video has none
    seed: int  # seed of the clip's mask
    sample: int  # id of the sample; instead of a corrupt sample, its replacement


class Position(NamedTuple):
    """Place of a clip in the order of a training."""

    step: int  # from the start of the training
    offset: int  # in the batch of the step, over all ranks


class ClipDataset(Dataset[Clip]):
    """Random clips of shards by :class:`Position`; a plain number counts the clips of the first epoch.

    The clip, its crop and its augmentation follow from seed, pass and sample, on every worker. A corrupt sample is
    replaced by the next intact one of its shuffle window.
    """

    def __init__(self, config: Config):
        self.config, self.seed = config, config.seed
        self.batch_size = config.optim.global_batch_size
        self.sources = load_sources(config.data)
        check_stored(self.sources, config.clip, flow=False)
        self.steps_per_epoch = steps_per_epoch(config, self.sources.epoch_samples)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.sources.manifest.class_names

    def __len__(self) -> int:
        """Return the number of clips of an epoch; an incomplete last batch is left out."""
        return self.steps_per_epoch * self.batch_size

    def __getitem__(self, position: Position | int) -> Clip:
        if isinstance(position, int):
            if not 0 <= position < len(self):
                raise IndexError(f"clip {position} of {len(self)}")
            position = Position(*divmod(position, self.batch_size))
        clip = self.config.clip
        pixels = np.empty((1, clip.frames, clip.size, clip.size, 3), np.uint8)
        first = draw = self._order.draw(*position)
        while True:
            request = ClipRequest(0, self.seed, draw.epoch, draw.sample, 0)
            [found] = self._decoder.decode_into([request], SharedBuffer(pixels, -1), None)
            if not isinstance(found, CorruptSample):
                seed = mask_seed(self.seed, draw.epoch, draw.sample, 0)
                return Clip(torch.from_numpy(pixels[0]), found.label, seed, draw.sample)
            draw = self._order.next_in_window(draw)
            if draw == first:
                raise UserError(
                    f"all samples of a shuffle window in {self.config.data.sources[draw.source].path} are corrupt: run "
                    "`motionmae shards verify`, and restore the shards that it names"
                )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files: every worker opens its own."""
        return {key: value for key, value in vars(self).items() if key not in ("_decoder", "_order")}

    @cached_property
    def _decoder(self) -> SampleDecoder:
        return SampleDecoder(open_samples(self.config.data, self.sources), self.config.data, self.config.clip)

    @cached_property
    def _order(self) -> Order:
        return make_order(self.sources, seed=self.seed, batch=self.batch_size, steps_per_epoch=self.steps_per_epoch)


class ElasticSampler(Sampler[Position]):
    """Positions of one rank. Each iteration yields the rest of an epoch and then moves to the next epoch.

    Of R ranks with micro-batches of b samples, accumulation step a of rank r takes the offsets a * R * b + r * b +
    [0, b) of a step.
    """

    def __init__(self, dataset: ClipDataset, rank: int, world: int):
        if not 0 <= rank < world:
            raise UserError(f"rank={rank} and world={world} are not possible: ranks count from 0 to world - 1")
        self._dataset, self.rank, self.world = dataset, rank, world
        self.micro_batch_size = dataset.config.engine.micro_batch_size
        self.accumulation = accumulation_steps(dataset.config, world)
        """Micro-batches of this rank in a step."""
        self.steps_per_epoch = dataset.steps_per_epoch
        self._step = 0  # of the next iteration, from the start of the training

    def __len__(self) -> int:
        """Return the number of samples of this rank in the next iteration."""
        left = self.steps_per_epoch - self._step % self.steps_per_epoch
        return left * self.accumulation * self.micro_batch_size

    def __iter__(self) -> Iterator[Position]:
        first = self._step
        self._step = (first // self.steps_per_epoch + 1) * self.steps_per_epoch
        for step in range(first, self._step):
            for part in range(self.accumulation):
                start = (part * self.world + self.rank) * self.micro_batch_size
                for offset in range(start, start + self.micro_batch_size):
                    yield Position(step, offset)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of ``epoch``."""
        self._step = epoch * self.steps_per_epoch

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after ``step`` training steps stores, as JSON values. It is the same on every rank.

        The loop counts the steps: a DataLoader asks the sampler ahead, so that the sampler cannot know them.
        """
        return self._identity | {"epoch": step // self.steps_per_epoch, "step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the next iteration after the step of ``state``, on any number of ranks.

        Raises:
            UserError: shards, seed, batch size or shuffle window differ.
        """
        check_same_stream(dict(state), self._identity)
        self._step = int(state["step"])

    @property
    def _identity(self) -> dict[str, Any]:
        return stream_identity(self._dataset.sources, self._dataset.seed, self._dataset.batch_size)


@dataclass(frozen=True)
class ClipData:
    """Dataset and sampler of one rank."""

    dataset: ClipDataset
    sampler: ElasticSampler

    def loader(self, **options: Any) -> DataLoader[Clip]:
        """Return a DataLoader of micro-batches; ``options`` are its further arguments, such as num_workers."""
        return DataLoader(self.dataset, self.sampler.micro_batch_size, sampler=self.sampler, **options)


def dataset(
    shards: str | Sequence[Mapping[str, Any]],
    *,
    batch_size: int,
    micro_batch_size: int | None = None,
    seed: int = 0,
    rank: int | None = None,
    world: int | None = None,
    config: Config | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ClipData:
    """Open shards for a training loop of your own, in the order of MotionMAE's training.

    Args:
        shards: folder or URL of shards, or a mixture: ``[{"path": FOLDER, "weight": 3}, ...]``.
        batch_size: samples of a step on all ranks together; it fixes the order.
        micro_batch_size: samples of a forward pass of a rank; by default the rank's whole share of a step.
        rank, world: by default those of torchrun or Slurm, or of a single process.
        config: config with other settings of `clip` and `data`, such as that of `motionmae.load`.
        settings: such settings by name, for example ``{"clip.frames": 8, "data.flip": False}``.

    Raises:
        UserError: there are no such shards, they are fewer samples than a batch, or settings do not fit.
    """
    if rank is None or world is None:
        place = rank_environment(os.environ)
        rank, world = int(place["RANK"]), int(place["WORLD_SIZE"])
    whole = (config or Config()).updated(dict(settings or {}))
    micro = micro_batch_size or max(1, batch_size // world)
    changes = {
        "seed": seed,
        "data.shards": shards if isinstance(shards, str) else list(shards),
        "optim.global_batch_size": batch_size,
        "engine.micro_batch_size": micro,
    }
    whole = Config().updated({"clip": whole.clip, "data": whole.data, **changes})
    if whole.data.repeated_sampling != 1:
        raise UserError("data.repeated_sampling is for the loader of a training: set it to 1, or repeat the clips")
    clips = ClipDataset(whole)
    return ClipData(clips, ElasticSampler(clips, rank, world))

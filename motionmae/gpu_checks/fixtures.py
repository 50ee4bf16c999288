"""Fixtures of the checks: configs, engines, batches, and shards of synthetic videos."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from motionmae.config import Config, load_config
from motionmae.data.shards.format import ShardEntry, ShardWriter
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.distributed.process_group import init_distributed
from motionmae.distributed.stop_requests import StopSignals
from motionmae.engine.deepspeed_engine import Engine
from motionmae.gpu_checks.check import Setting
from motionmae.models.motionmae import build_motionmae
from motionmae.training.pretrain import Pretraining
from motionmae.training.setup import build_trainer, make_task
from motionmae.training.trainer import Trainer

TINY = "tiny_toy"
"""Config of the smallest model, for --quick and for the CPU."""
_QUALITY = 90  # of the JPEGs in synthetic shards
_VIDEOS = 16  # different videos in synthetic shards; more samples repeat them
_MOTION = 3  # pixels that the pattern of a synthetic video moves between frames


class Batch(NamedTuple):
    """Inputs of the pre-training model on the device."""

    clips: Tensor  # uint8 (n, T, H, W, 3)
    seeds: Tensor  # int64 (n,)


def device_of(setting: Setting) -> torch.device:
    return torch.device("cuda", 0) if setting.on_gpu else torch.device("cpu")


def load(name: str, setting: Setting, *overrides: str) -> Config:
    """Load a preset for one process on the setting's device: no accumulation, no exporter."""
    fixed = [
        f"engine.device={setting.device}",
        "launch.nodes=1",
        "launch.ntasks_per_node=1",
        "monitoring.enabled=false",
    ]
    config = load_config(name, [*fixed, f"launch.gpus_per_node={int(setting.on_gpu)}", *overrides])
    return config.updated({"optim.global_batch_size": config.engine.micro_batch_size})


def build_engine(config: Config, stage: int | None = None) -> Engine:
    """Build the pre-training model on DeepSpeed. ``stage`` overrides the ZeRO stage, which is 0 on one rank."""
    rank = init_distributed(config.engine)
    task, model = Pretraining(config), build_motionmae(config)
    return Engine(model, task.parameter_groups(model), config, rank, stage=stage)


def make_batch(config: Config, number: int, device: torch.device) -> Batch:
    """Make a micro-batch of noise; the same ``number`` gives the same batch on every device."""
    count, clip = config.engine.micro_batch_size * config.data.repeated_sampling, config.clip
    random = torch.Generator().manual_seed(number)
    shape = (count, clip.frames, clip.size, clip.size, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    return Batch(clips.to(device), (torch.arange(count) + 1000 * number).to(device))


def take_step(engine: Engine, batch: Batch) -> Tensor:
    """Take an optimiser step and return the loss, a tensor on the device."""
    losses = engine(batch.clips, batch.seeds, None)
    engine.backward(losses[0])
    engine.step()
    return losses[0].detach()


def take_steps(engine: Engine, config: Config, numbers: range) -> list[float]:
    """Take a step with each of the numbered batches and return the losses."""
    device = next(iter(engine.parameters.values())).device
    return [float(take_step(engine, make_batch(config, number, device))) for number in numbers]


@contextmanager
def real_trainer(config: Config) -> Iterator[Trainer]:
    """Build the trainer of a run as `motionmae pretrain` does."""
    init_distributed(config.engine)  # else the trainer would destroy the group, which DeepSpeed keeps using
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        trainer = build_trainer(config, make_task(config), signals, (), stack)
        assert trainer is not None, f"{config.run_folder} is complete"
        yield trainer


def make_shards(folder: Path, config: Config, samples: int, classes: int = 2) -> Path:
    """Write shards of synthetic videos for ``config``: noise of 16 x 16 pixels that moves, one direction a class."""
    clip = config.clip
    stored, height = clip.frames + 8, clip.size * 8 // 7
    width = height * 4 // 3
    entries: list[ShardEntry] = []
    folder.mkdir(parents=True)
    videos = [_make_video(number, stored, height, width, classes) for number in range(_VIDEOS)]
    for shard, numbers in enumerate((range(samples // 2), range(samples // 2, samples))):
        with ShardWriter(folder / f"synthetic-{shard:06d}.tar") as writer:
            for number in numbers:
                label = number % _VIDEOS % classes
                meta = {
                    "label": label,
                    "class_name": f"direction{label}",
                    "source": f"{number}.mp4",
                    "fps": 25.0,
                    "frames": stored,
                    "stride": clip.stride,
                    "height": height,
                    "width": width,
                    "times": [frame * clip.stride / 25 for frame in range(stored)],
                }
                writer.write(f"{number:08d}", videos[number % _VIDEOS], meta)
        assert writer.entry is not None
        entries.append(writer.entry)
    names = tuple(f"direction{label}" for label in range(classes))
    settings = EncoderSettings(short_side=height, jpeg_quality=_QUALITY, stride=clip.stride)
    write_manifest(folder, Manifest("synthetic", "train", names, settings, tuple(entries)))
    return folder


def _make_video(number: int, frames: int, height: int, width: int, classes: int) -> list[bytes]:
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    picture = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    step = _MOTION if number % classes else -_MOTION
    moved = (np.ascontiguousarray(np.roll(picture, frame * step, 1)) for frame in range(frames))
    return [simplejpeg.encode_jpeg(frame, quality=_QUALITY) for frame in moved]


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch compute on all cores of this process, for results that a GPU is compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decoders(ranks: int = 1) -> int:
    """Return the decoding processes of each rank, at most 10: a core stays free for the training process."""
    return max(1, min(10, len(os.sched_getaffinity(0)) // ranks - 1))

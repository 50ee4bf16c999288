"""The contestants of benchmarks/step.py: models in plain torch, and MotionMAE in its trainer.

All contestants train on the same decoded clips in memory, in the layout and number format of their data loaders.
"""

import importlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.config import Config, DataConfig
from motionmae.data.loader import Batch, ClipLoader
from motionmae.data.mixture.sources import Sources
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.stop_requests import StopSignals
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.convert import huggingface_config
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.models.targets import make_targets
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, JsonLines, Kind, Phase, Row, Sink
from motionmae.runs.lease import acquire_lease
from motionmae.training.callbacks.base import SynchronizedGc
from motionmae.training.callbacks.loggers import TensorBoard
from motionmae.training.pretrain import Pretraining
from motionmae.training.state import TrainState
from motionmae.training.step_timer import StepTimer
from motionmae.training.trainer import Trainer

Phases = dict[str, float]
"""Seconds of the parts of a step."""


class Plain:
    """Model in plain torch: forward, backward, AdamW. The loss is read in every step, as in the official code.

    Args:
        loss: the forward pass.
        bf16: whether to use autocast to bfloat16.
        targets: computes the argument of ``loss``, if the model does not. It is timed separately.
        fused: whether to use torch's fused AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        device: torch.device,
        *,
        bf16: bool,
        targets: Callable[[], Tensor] | None = None,
        fused: bool = False,
    ):
        self._loss, self._targets, self._device, self._bf16 = loss, targets, device, bf16
        self._optimizer = torch.optim.AdamW(
            model.to(device).parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05, fused=fused or None
        )

    def step(self) -> Phases:
        """Take a step and return the seconds of its parts."""
        clock, spent = StepTimer.of(self._device), {}
        arguments: tuple[Tensor, ...] = ()
        if self._targets:
            clock.enter(Phase.FORWARD)
            with torch.no_grad():
                arguments = (self._targets(),)
            spent["targets"] = clock.take()[Phase.FORWARD]
        clock.enter(Phase.FORWARD)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            loss = self._loss(*arguments)
        assert loss.isfinite().item()
        clock.enter(Phase.BACKWARD)
        self._optimizer.zero_grad()
        loss.backward()
        clock.enter(Phase.OPTIMIZER)
        self._optimizer.step()
        return spent | _named(clock.take())


class InLoop:
    """MotionMAE in the trainer of a run: DeepSpeed, schedule, signals, watchdog, and a row of metrics in every step.

    Args:
        batch: clips and seeds of every step.
        sinks: additional sinks for events and metrics.
        stage: overrides the ZeRO stage of the run.
    """

    def __init__(
        self, config: Config, batch: Batch, rank: DistributedContext, sinks: list[Sink], stage: int | None = None
    ):
        self._stack = stack = ExitStack()
        folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="step-"))))
        folder.create()
        task, lease = Pretraining(config), acquire_lease(folder.path)
        model = build_motionmae(config)
        engine = Engine(model, task.parameter_groups(model), config, rank, stage)
        own: list[Sink] = [self, JsonLines(folder.events, folder.metrics), TensorBoard(folder, 0)]
        events = stack.enter_context(closing(EventLog(lease.attempt.id, [*own, *sinks], check=lease.check)))
        events.event(Kind.START, 0, world=rank.world)
        events.event(Kind.READY, 0, total_steps=OneBatch.steps_per_epoch)
        watchdog = stack.enter_context(closing(Watchdog(config.watchdog, folder.logs / "stacks.txt", print)))
        collector = stack.enter_context(closing(SynchronizedGc()))
        self._trainer = Trainer(
            config=config,
            task=task,
            rank=rank,
            folder=folder,
            lease=lease,
            signals=stack.enter_context(StopSignals()),
            engine=engine,
            loader=cast(ClipLoader, OneBatch(batch)),
            watchdog=watchdog,
            events=events,
            callbacks=[collector],
            log=print,
            state=TrainState(),
            memory_copies=MemoryCopies(rank, folder.path, lease, 0, watchdog, print),
            newest_saved=None,
        )
        stack.callback(self._trainer.checkpointer.close)
        self._batches = self._trainer.batches()
        stack.callback(engine.close)
        collector.on_train_start()

    def step(self) -> Phases:
        """Take a step and log the step as :meth:`motionmae.training.trainer.Trainer.fit` does."""
        trainer = self._trainer
        trainer.timer.take()  # the time of other contestants
        trainer.stop_requests.begin_sync()
        result = trainer.train_step(self._batches)
        trainer.stop_requests.finish_sync()
        trainer.timer.end_step()
        assert trainer.engine.applied
        trainer.log_step(result)
        return self._spent

    def metrics(self, row: Row) -> None:
        """Keep the seconds of the step's phases (Sink)."""
        self._spent = {phase.value: row[f"{phase.value}_seconds"] for phase in Phase}

    def event(self, row: Row) -> None:
        """Do nothing: only metrics are kept (Sink)."""

    def close(self) -> None:
        """End the run. The event log calls this again, which does nothing."""
        self._stack.pop_all().close()


class OneBatch:
    """Replacement for the loader that repeats one micro-batch. No decoding is timed."""

    steps_per_epoch = 10_000
    ready = 0
    sources = Sources(DataConfig(), ())

    def __init__(self, batch: Batch):
        self._batch = batch
        self.corrupt_samples: dict[int, str] = {}

    def batches(self, step: int) -> Iterator[Batch]:
        """Repeat the batch."""
        return itertools.repeat(self._batch)


def random_batch(config: Config, clips: int) -> Batch:
    """Return clips of noise."""
    shape = (clips, config.clip.frames, config.clip.size, config.clip.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(clips)
    return Batch(pixels, numbers, numbers, numbers, None)


def ours(config: Config, batch: Batch, device: torch.device, bf16: bool) -> Plain:
    """Return our model in plain torch."""
    model = build_motionmae(config)
    inputs = batch.to(device)
    return Plain(model, lambda: model(inputs.clips, inputs.seeds).total, device, bf16=bf16, fused=True)


def only_targets(config: Config, batch: Batch, device: torch.device) -> Callable[[], object]:
    """Return a function that computes the targets of our forward pass."""
    model = _on_meta(config)
    query = model.draw_queries(batch.seeds, model.draw_masks(batch.seeds))[0].to(device)
    clips = batch.clips.to(device)
    return lambda: make_targets(config, cut_patches(clips, config.clip.cube_size), query)


def hugging_face(config: Config, batch: Batch, device: torch.device, bf16: bool) -> Plain:
    """Return transformers' VideoMAE, which computes its targets in the model."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    model = VideoMAEForPreTraining(VideoMAEConfig(**huggingface_config(config)))
    if config.model.activation_checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    clips = _normalised(batch).to(device)  # (B, T, C, H, W)
    masked = _masked(config, batch.seeds).to(device)
    return Plain(model, lambda: model(clips, bool_masked_pos=masked).loss, device, bf16=bf16)


def official(folder: Path, config: Config, batch: Batch, device: torch.device, bf16: bool) -> Plain:
    """Return VideoMAE from ``folder``, a checkout of github.com/MCG-NJU/VideoMAE, with its normalised targets."""
    sys.path.insert(0, str(folder))
    try:
        theirs = importlib.import_module("modeling_pretrain")
    finally:
        sys.path.remove(str(folder))
    size = {"vit_s": "small", "vit_b": "base", "vit_l": "large", "vit_h": "huge"}[config.model.size]
    make = getattr(theirs, f"pretrain_videomae_{size}_patch16_224")
    recompute = config.model.activation_checkpointing != "none"
    model = make(decoder_depth=config.model.decoder_depth, use_checkpoint=recompute)
    model.train()
    clips = _normalised(batch).transpose(1, 2).contiguous().to(device)  # (B, C, T, H, W)
    masked = _masked(config, batch.seeds).to(device)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    cube = {"p0": config.clip.cube_frames, "p1": config.clip.cube_size, "p2": config.clip.cube_size}

    def targets() -> Tensor:
        """Compute targets like engine_for_pretraining.py: normalise all cubes, then keep the masked ones."""
        pixels = rearrange(clips * std + mean, "b c (t p0) (h p1) (w p2) -> b (t h w) (p0 p1 p2) c", **cube)
        deviation = pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
        cubes = rearrange((pixels - pixels.mean(dim=-2, keepdim=True)) / deviation, "b n p c -> b n (p c)")
        return cubes[masked].reshape(len(clips), -1, cubes.shape[2])

    def loss(target: Tensor) -> Tensor:
        return functional.mse_loss(model(clips, masked), target)

    return Plain(model, loss, device, bf16=bf16, targets=targets)


def _normalised(batch: Batch) -> Tensor:
    """Return normalised pixels (B, T, C, H, W), like the loaders of the other projects."""
    pixels = (batch.clips / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    return pixels.permute(0, 1, 4, 2, 3).contiguous()


def _on_meta(config: Config) -> MotionMAE:
    """Return our model without weights, which is enough to draw masks."""
    with torch.device("meta"):
        return MotionMAE(config)


def _masked(config: Config, seeds: Tensor) -> Tensor:
    """Return which cubes our model masks: bool (B, N)."""
    cubes = _on_meta(config).draw_masks(seeds).masked
    return torch.zeros(len(seeds), config.clip.cubes, dtype=torch.bool).scatter(1, cubes, True)


def _named(spent: dict[Phase, float]) -> Phases:
    return {phase.value: spent[phase] for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)}

"""What benchmarks/step.py times: a model in plain torch, whoever wrote it, and ours in its real training loop.

Every contestant takes one whole training step of the same clips, which lie in memory, decoded and cut: in the layout
and number format that its own data loader would give it.
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

from motionmae.checkpointing.async_checkpointer import AsyncCheckpointer
from motionmae.config import Config
from motionmae.data.loader import Batch, ClipLoader
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.stop_requests import StopRequests, StopSignals
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.models.convert.huggingface import huggingface_config
from motionmae.models.cubes import cut_patches
from motionmae.models.motionmae import MotionMAE, build_motionmae
from motionmae.models.targets import make_targets
from motionmae.models.vit import PIXEL_MEAN, PIXEL_STD
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, JsonLines, Kind, Row, Sink
from motionmae.runs.lease import acquire_lease
from motionmae.runs.phases import Phase
from motionmae.training.callbacks.gc import SynchronizedGc
from motionmae.training.callbacks.loggers import TensorBoard
from motionmae.training.pretrain import Pretraining
from motionmae.training.state import TrainState
from motionmae.training.step_timer import StepTimer
from motionmae.training.trainer import Trainer

Phases = dict[str, float]
"""Seconds of a step by what was done in them."""


class Plain:
    """A model in plain torch: forward, backward, AdamW, the loss read in every step as the official code does.

    Args:
        model: to be trained.
        loss: its forward pass.
        device: where it runs.
        bf16: under autocast to bfloat16.
        targets: makes what ``loss`` is called with, where that is not part of the model; timed by itself.
        fused: torch's fused AdamW, in place of the default.
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
        """Take a step."""
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
    """MotionMAE as a run trains it: DeepSpeed, schedule, signals, watchdog, and a row of metrics in every step.

    Args:
        config: of the run.
        batch: clips and seeds, taken again in every step.
        rank: of this process.
        sinks: told of every row, besides the run folder's own.
        stage: of ZeRO, where it is to be another than a run would take.
    """

    def __init__(
        self, config: Config, batch: Batch, rank: DistributedContext, sinks: list[Sink], stage: int | None = None
    ):
        self._stack = stack = ExitStack()
        folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="step-"))))
        folder.create()
        task, store, lease = Pretraining(config), CheckpointStore(folder.checkpoints), acquire_lease(folder.path)
        model = build_motionmae(config)
        engine = Engine(model, task.parameter_groups(model), config, rank, stage)
        own: list[Sink] = [self, JsonLines(folder.events, folder.metrics), TensorBoard(folder, 0)]
        events = stack.enter_context(closing(EventLog(lease.attempt.id, [*own, *sinks], check=lease.check)))
        events.event(Kind.START, 0, world=rank.world)
        events.event(Kind.READY, 0, total_steps=OneBatch.steps_per_epoch)
        watchdog = stack.enter_context(closing(Watchdog(config.watchdog, folder.logs / "stacks.txt", print)))
        loader = OneBatch(batch)
        collector = stack.enter_context(closing(SynchronizedGc()))
        self._trainer = Trainer(
            config=config,
            task=task,
            rank=rank,
            folder=folder,
            store=store,
            engine=engine,
            loader=cast(ClipLoader, loader),
            checkpointer=stack.enter_context(
                closing(AsyncCheckpointer(store, rank, lease, config.checkpoint, watchdog))
            ),
            stop_requests=StopRequests(stack.enter_context(StopSignals()), folder.path, rank.is_rank_zero),
            watchdog=watchdog,
            events=events,
            callbacks=[collector],
            log=print,
            state=TrainState(),
            total_steps=OneBatch.steps_per_epoch,
        )
        self._batches = self._trainer.batches()
        stack.callback(engine.close)
        collector.on_train_start()

    def step(self) -> Phases:
        """Take a step and log it, as :meth:`motionmae.training.trainer.Trainer.fit` does."""
        trainer = self._trainer
        trainer.timer.take()  # the time of other contestants
        result = trainer.train_step(self._batches)
        assert result.applied
        trainer.stop_requests.sync_across_ranks()
        trainer.timer.end_step()
        trainer.log_step(result)
        return self._spent

    def metrics(self, row: Row) -> None:
        """Be the sink that hears where the step's seconds went."""
        self._spent = {phase.value: row[f"{phase.value}_seconds"] for phase in Phase}

    def event(self, row: Row) -> None:
        """Hear what else there is."""

    def close(self) -> None:
        """End the run; its log closes this sink, for which nothing is left to do then."""
        self._stack.pop_all().close()


class OneBatch:
    """Stands in for the loader, so that no decoding is timed: one micro-batch for ever."""

    steps_per_epoch = 10_000
    ready = 0

    def __init__(self, batch: Batch):
        self._batch = batch
        self.corrupt_samples: dict[int, str] = {}

    def batches(self, step: int) -> Iterator[Batch]:
        """The batch again and again."""
        return itertools.repeat(self._batch)


def random_batch(config: Config, clips: int) -> Batch:
    """Clips of noise."""
    shape = (clips, config.clip.frames, config.clip.size, config.clip.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(clips)
    return Batch(pixels, numbers, numbers, numbers, None)


def ours(config: Config, batch: Batch, device: torch.device, bf16: bool) -> Plain:
    """Our model without engine and loop."""
    model = build_motionmae(config)
    inputs = batch.to(device)
    return Plain(model, lambda: model(inputs.clips, inputs.seeds).total, device, bf16=bf16, fused=True)


def only_targets(config: Config, batch: Batch, device: torch.device) -> Callable[[], object]:
    """The part of our forward pass that makes what the heads are held against."""
    model = _unmade(config)
    rebuilt = model.draw_queries(batch.seeds, model.draw_masks(batch.seeds))[0].to(device)
    clips = batch.clips.to(device)
    return lambda: make_targets(config, cut_patches(clips, config.clip.cube_size), rebuilt)


def hugging_face(config: Config, batch: Batch, device: torch.device, bf16: bool) -> Plain:
    """VideoMAE of transformers, which makes the target itself."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    model = VideoMAEForPreTraining(VideoMAEConfig(**huggingface_config(config)))
    if config.model.activation_checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    clips = _normalised(batch).to(device)  # (B, T, C, H, W)
    hidden = _hidden(config, batch.seeds).to(device)
    return Plain(model, lambda: model(clips, bool_masked_pos=hidden).loss, device, bf16=bf16)


def official(folder: Path, config: Config, batch: Batch, device: torch.device, bf16: bool) -> Plain:
    """VideoMAE's own code in ``folder``, a checkout of github.com/MCG-NJU/VideoMAE, and its normalised target."""
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
    hidden = _hidden(config, batch.seeds).to(device)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    cube = {"p0": config.clip.cube_frames, "p1": config.clip.cube_size, "p2": config.clip.cube_size}

    def targets() -> Tensor:
        """As its engine_for_pretraining.py: all cubes' pixels are normalised, then the masked ones are kept."""
        pixels = rearrange(clips * std + mean, "b c (t p0) (h p1) (w p2) -> b (t h w) (p0 p1 p2) c", **cube)
        deviation = pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
        cubes = rearrange((pixels - pixels.mean(dim=-2, keepdim=True)) / deviation, "b n p c -> b n (p c)")
        return cubes[hidden].reshape(len(clips), -1, cubes.shape[2])

    def loss(wanted: Tensor) -> Tensor:
        return functional.mse_loss(model(clips, hidden), wanted)

    return Plain(model, loss, device, bf16=bf16, targets=targets)


def _normalised(batch: Batch) -> Tensor:
    """Float pixels (B, T, C, H, W), as their loaders give."""
    pixels = (batch.clips / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    return pixels.permute(0, 1, 4, 2, 3).contiguous()


def _unmade(config: Config) -> MotionMAE:
    """Our model without weights, which draws masks."""
    with torch.device("meta"):
        return MotionMAE(config)


def _hidden(config: Config, seeds: Tensor) -> Tensor:
    """Bool (B, cubes): True where ours masks."""
    masked = _unmade(config).draw_masks(seeds).masked
    return torch.zeros(len(seeds), config.clip.cubes, dtype=torch.bool).scatter(1, masked, True)


def _named(spent: dict[Phase, float]) -> Phases:
    return {phase.value: spent[phase] for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)}

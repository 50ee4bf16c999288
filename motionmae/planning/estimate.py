"""What a run will take, by formula, before anything is asked of a cluster: memory, work, time, loader cores."""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from motionmae.config import Config
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.data.open_shards import load_manifest
from motionmae.data.remote.download import UnreachableError, is_remote
from motionmae.data.shards.manifest import MANIFEST, Manifest
from motionmae.planning.flops import count_classifier_parameters, forward_gflops, step_flops
from motionmae.planning.gpus import USABLE, Gpu
from motionmae.planning.memory import Memory, largest_micro_batch, predict_memory, trained_parameters

STAGES = (0, 1, 2, 3)
CHECKPOINTING = ("none", "every_n", "full")
LOADER_SPEED = 170.0
"""Clips of 16 frames that one core decodes, crops and resizes a second; `benchmarks/loader.py` measures it."""

KINETICS_CLASSES = 400


@dataclass(frozen=True)
class Assumptions:
    """What a plan cannot know."""

    gpu: Gpu
    mfu: float
    """Share of the GPU's peak that a step without recomputation reaches; recomputed work runs at the same rate."""
    loader_speed: float = LOADER_SPEED
    """Clips of 16 frames a second and core."""


@dataclass(frozen=True)
class Choice:
    """One ZeRO stage with one checkpointing mode."""

    zero: int
    checkpointing: str
    memory: Memory
    """At the config's micro batch."""
    largest_micro_batch: int
    """Videos of a forward pass that fit on the GPU; 0: not even one."""
    recomputed_share: float
    """Work added by checkpointing, as a share of the model's own."""


@dataclass(frozen=True)
class Plan:
    """A run in numbers; bytes are those of one rank."""

    ranks: int
    accumulation: int
    """Micro-batches of a step."""
    clips_per_step: int
    """Over all ranks, repeated clips of a video counted."""
    encoder_parameters: int
    decoder_parameters: int
    classes: int
    """Of the shards; without labels there, Kinetics' 400."""
    classifier_parameters: int
    """Of the encoder with a layer for these classes."""
    gflops_per_view: float
    """10^9 multiply-additions of that classifier."""
    memory: Memory
    flops_per_clip: int
    """Forward and backward, a multiplication and an addition counted as two."""
    recomputed_flops_per_clip: int
    """Work that activation checkpointing adds."""
    videos: int | None
    """Of an epoch; None without shards to count."""
    steps_per_epoch: int | None
    epochs: int
    frames: int
    """Of a clip."""

    @property
    def steps(self) -> int | None:
        """Of the whole run; None without shards."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.epochs

    def clips_per_second(self, assumed: Assumptions) -> float:
        """Speed of all ranks together."""
        work = self.flops_per_clip + self.recomputed_flops_per_clip
        return self.ranks * assumed.gpu.tflops * 1e12 * assumed.mfu / work

    def gpu_days(self, assumed: Assumptions) -> float | None:
        """Time of the whole run, times the number of GPUs; None without shards."""
        if self.steps is None:
            return None
        return self.steps * self.clips_per_step / self.clips_per_second(assumed) * self.ranks / 86_400

    def loader_cores(self, assumed: Assumptions, ntasks_per_node: int) -> int:
        """Cores a node whose decoding keeps up with its GPUs."""
        clips = self.clips_per_second(assumed) * ntasks_per_node / self.ranks
        return ceil(clips * self.frames / 16 / assumed.loader_speed)


def make_plan(config: Config, videos: int | None = None) -> Plan:
    """Count what the run of ``config`` takes on `launch.nodes` x `launch.ntasks_per_node` ranks.

    Args:
        config: of the run.
        videos: of an epoch; None to count those of the shards.

    Raises:
        UserError: if the batch does not divide over the ranks, the shards are no shards, or fewer than a step takes.
    """
    ranks = config.launch.nodes * config.launch.ntasks_per_node
    parameters, flops = trained_parameters(config), step_flops(config)
    manifest = _manifest(config)
    videos = manifest.samples if videos is None and manifest else videos
    classes = (len(manifest.class_names) if manifest else 0) or KINETICS_CLASSES
    return Plan(
        ranks=ranks,
        accumulation=accumulation_steps(config, ranks),
        clips_per_step=config.optim.global_batch_size * config.data.repeated_sampling,
        encoder_parameters=parameters.encoder,
        decoder_parameters=parameters.decoders,
        classes=classes,
        classifier_parameters=count_classifier_parameters(config, classes),
        gflops_per_view=forward_gflops(config, classes),
        memory=predict_memory(config, ranks),
        flops_per_clip=flops.model,
        recomputed_flops_per_clip=flops.recomputed,
        videos=videos,
        steps_per_epoch=None if videos is None else steps_per_epoch(config, videos),
        epochs=config.optim.epochs,
        frames=config.clip.frames,
    )


def compare_choices(config: Config, gpu: Gpu) -> list[Choice]:
    """What every ZeRO stage (of one rank: 0) takes with every checkpointing mode, and how much ``gpu`` has room for.

    Raises:
        UserError: if the batch does not divide over the ranks.
    """
    ranks = config.launch.nodes * config.launch.ntasks_per_node
    choices = []
    for stage in STAGES if ranks > 1 else STAGES[:1]:
        for mode in CHECKPOINTING:
            case = replace(
                config,
                engine=replace(config.engine, zero_stage=stage),
                model=replace(config.model, activation_checkpointing=mode),
                optim=replace(config.optim, ema_decay=0.0 if stage == 3 else config.optim.ema_decay),
            )
            flops = step_flops(case)
            largest = largest_micro_batch(case, ranks, USABLE * gpu.gigabytes * 1e9)
            choices.append(
                Choice(stage, mode, predict_memory(case, ranks), largest, flops.recomputed / max(flops.model, 1))
            )
    return choices


def _manifest(config: Config) -> Manifest | None:
    """Of the shards; None where they are not made yet, or not within reach of this machine."""
    data = config.data
    if is_remote(data.shards):
        try:
            return load_manifest(data.shards, replace(data, remote_retries=0, remote_timeout=5))
        except UnreachableError:
            return None
    if not data.shards or not (Path(data.shards) / MANIFEST).is_file():
        return None
    return load_manifest(data.shards)

"""Estimates by formula before a run is submitted: memory, operations, time, and loader cores."""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from motionmae.config import Config
from motionmae.config.schema import accumulation_steps, steps_per_epoch
from motionmae.data.mixture.sources import Sources
from motionmae.data.open_shards import load_sources
from motionmae.data.remote.download import UnreachableError
from motionmae.data.remote.file_systems import is_remote
from motionmae.data.shards.manifest import MANIFEST
from motionmae.planning.flops import count_classifier_parameters, forward_gflops, step_flops
from motionmae.planning.gpus import USABLE, Gpu
from motionmae.planning.memory import Memory, largest_micro_batch, predict_memory, trained_parameters

LOADER_SPEED = 170.0
"""Clips of 16 frames that one core decodes, crops, and resizes per second, as measured by `benchmarks/loader.py`."""
KINETICS_CLASSES = 400


@dataclass(frozen=True)
class Assumptions:
    """Assumptions about the hardware."""

    gpu: Gpu
    mfu: float  # model FLOPs utilisation of a step without recomputation; recomputed work runs at the same rate
    loader_speed: float = LOADER_SPEED
    mfu_source: str = "given"


@dataclass(frozen=True)
class Choice:
    """A ZeRO stage with a mode of activation checkpointing."""

    zero: int
    checkpointing: str
    memory: Memory  # at the config's micro-batch size
    largest_micro_batch: int  # largest number of videos in a forward pass that fits on the GPU; 0 if none fits
    recomputed_share: float  # recomputed operations as a share of the model's operations


@dataclass(frozen=True)
class Plan:
    """Estimate of a run's size and cost; bytes are per rank."""

    ranks: int
    accumulation: int
    clips_per_step: int  # over all ranks, including repeated clips of a video
    encoder_parameters: int
    decoder_parameters: int
    classes: int  # number of classes in the shards, or Kinetics' 400 if the shards have no labels
    classifier_parameters: int  # parameters of the encoder with a linear layer for ``classes``
    gflops_per_view: float  # 10^9 multiply-additions of the classifier for one view
    memory: Memory
    flops_per_clip: int  # forward and backward pass; a multiply-addition counts as two
    recomputed_flops_per_clip: int  # added by activation checkpointing
    videos: int | None  # per epoch; None without shards
    steps_per_epoch: int | None
    epochs: int
    frames: int
    mixture: str = ""  # samples and passes of each source in an epoch; empty for one folder of shards

    @property
    def steps(self) -> int | None:
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.epochs

    def clips_per_second(self, assumed: Assumptions) -> float:
        """Return the throughput of all ranks."""
        work = self.flops_per_clip + self.recomputed_flops_per_clip
        return self.ranks * assumed.gpu.tflops * 1e12 * assumed.mfu / work

    def gpu_days(self, assumed: Assumptions) -> float | None:
        """Return the duration of the run times the number of GPUs; None without shards."""
        if self.steps is None:
            return None
        return self.steps * self.clips_per_step / self.clips_per_second(assumed) * self.ranks / 86_400

    def loader_cores(self, assumed: Assumptions, ntasks_per_node: int) -> int:
        """Return the number of cores per node that decode as fast as the node's GPUs train."""
        clips = self.clips_per_second(assumed) * ntasks_per_node / self.ranks
        return ceil(clips * self.frames / 16 / assumed.loader_speed)


def make_plan(config: Config, videos: int | None = None) -> Plan:
    """Estimate a run on `launch.nodes` x `launch.ntasks_per_node` ranks. By default, the shards give ``videos``.

    Raises:
        UserError: the global batch does not divide over the ranks, or the shards are invalid or too small for one step.
    """
    ranks = config.launch.nodes * config.launch.ntasks_per_node
    parameters, flops = trained_parameters(config), step_flops(config)
    sources = _sources(config)
    mixture = ""
    if videos is None and sources:
        videos = sources.epoch_samples
        steps_per_epoch(config, videos, ranks)
        mixture = sources.describe(config.optim.global_batch_size) if sources.is_mixture else ""
    classes = (len(sources.manifest.class_names) if sources else 0) or KINETICS_CLASSES
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
        steps_per_epoch=None if videos is None else steps_per_epoch(config, videos, ranks),
        epochs=config.optim.epochs,
        frames=config.clip.frames,
        mixture=mixture,
    )


def compare_choices(config: Config, gpu: Gpu) -> list[Choice]:
    """Estimate every activation checkpointing mode with every ZeRO stage; with one rank, only with stage 0."""
    ranks = config.launch.nodes * config.launch.ntasks_per_node
    choices = []
    for stage in (0, 1, 2, 3) if ranks > 1 else (0,):
        for mode in ("none", "every_n", "full"):
            ema = 0.0 if stage == 3 else config.optim.ema_decay  # stage 3 cannot keep a moving average
            case = config.updated(
                {"engine.zero_stage": stage, "model.activation_checkpointing": mode, "optim.ema_decay": ema}
            )
            flops = step_flops(case)
            largest = largest_micro_batch(case, ranks, USABLE * gpu.gigabytes * 1e9)
            share = flops.recomputed / max(flops.model, 1)
            choices.append(Choice(stage, mode, predict_memory(case, ranks), largest, share))
    return choices


def _sources(config: Config) -> Sources | None:
    """Read the manifests of the shards; None if some do not exist yet or this machine cannot reach them."""
    data = config.data
    quick = data.model_copy(update={"remote_retries": 0, "remote_timeout": 5})
    local = [source.path for source in data.sources if not is_remote(source.path)]
    if not all(path and (Path(path) / MANIFEST).is_file() for path in local):
        return None
    try:
        return load_sources(quick)
    except UnreachableError:
        return None

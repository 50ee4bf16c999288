"""What a run will take, by formula, before anything is asked of a cluster: parameters, memory, work, time.

Memory is an estimate. Counted are the training state with DeepSpeed's message buffers (:class:`StateMemory`) and the
tensors that autograd keeps from the forward for the backward pass (:func:`kept_bytes`); tests hold both against what
DeepSpeed and autograd really keep. Left out are workspaces of kernels, fragmentation and the CUDA context: leave a
tenth of the card free.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from motionmae.config import Config
from motionmae.config.schema import accumulation_steps
from motionmae.data.manifest import MANIFEST, load_manifest
from motionmae.data.transfer import UnreachableError, is_remote
from motionmae.models.counting import Parameters, count_classifier_parameters, count_parameters, step_flops
from motionmae.models.masking import masked_cubes
from motionmae.models.sizes import resolve
from motionmae.models.targets import output_sizes
from motionmae.training.engine import BUCKET

FP32 = 4
"""Bytes of a float32: parameters, the residual stream, predictions and targets in every precision."""


@dataclass(frozen=True)
class StateMemory:
    """Bytes on one rank that stay from step to step, by what ZeRO partitions them."""

    parameters: int
    """float32; partitioned at stage 3."""
    gradients: int
    """float32; partitioned at stages 2 and 3."""
    optimizer: int
    """AdamW's two moments and, from stage 1 on, DeepSpeed's own copy of the parameters; partitioned from stage 1 on."""
    buffers: int
    """DeepSpeed's message buffers, and the 16-bit copies of the weights that autocast keeps during a pass."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.buffers


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
    state: StateMemory
    activations: int
    """Bytes at the end of a forward pass, when most is held."""
    flops_per_clip: int
    """Forward and backward, a multiplication and an addition counted as two."""
    recomputed_flops_per_clip: int
    """Work that activation checkpointing adds."""
    videos: int | None
    """Of an epoch; None without shards to count."""
    steps_per_epoch: int | None
    epochs: int
    repeats: int

    @property
    def memory(self) -> int:
        """Bytes that a rank needs."""
        return self.state.total + self.activations

    def clips_per_second(self, peak_tflops: float, mfu: float) -> float:
        """Speed of all ranks together at a share ``mfu`` of a GPU's ``peak_tflops``."""
        return self.ranks * peak_tflops * 1e12 * mfu / self.flops_per_clip

    def gpu_days(self, peak_tflops: float, mfu: float) -> float | None:
        """Time of the whole run at that speed, times the number of GPUs; None without shards."""
        if self.steps_per_epoch is None:
            return None
        clips = self.steps_per_epoch * self.clips_per_step * self.epochs
        return clips / self.clips_per_second(peak_tflops, mfu) * self.ranks / 86_400


def make_plan(config: Config) -> Plan:
    """Count what the run of ``config`` takes on `launch.nodes` x `launch.ranks_per_node` ranks.

    Raises:
        UserError: if the batch does not divide over the ranks, or the shards are no shards.
    """
    ranks = config.launch.nodes * config.launch.ranks_per_node
    parameters, flops = count_parameters(config), step_flops(config)
    if config.task == "finetune":
        parameters = Parameters(count_classifier_parameters(config, classes=0), 0)  # the head is less than 1 %
    clips = config.engine.micro_batch * config.data.repeats
    videos = _videos(config)
    return Plan(
        ranks=ranks,
        accumulation=accumulation_steps(config, ranks),
        clips_per_step=config.optim.batch * config.data.repeats,
        encoder_parameters=parameters.encoder,
        decoder_parameters=parameters.decoders,
        state=_state_memory(config, parameters.total, ranks),
        activations=clips * (kept_bytes(config) + _transient_bytes(config)),
        flops_per_clip=flops.model,
        recomputed_flops_per_clip=flops.recomputed,
        videos=videos,
        steps_per_epoch=None if videos is None else videos // config.optim.batch,
        epochs=config.optim.epochs,
        repeats=config.data.repeats,
    )


def compute_bytes(config: Config) -> int:
    """Bytes of a value inside a block: 2 under autocast, else 4; `auto` means autocast where there are GPUs."""
    precision = config.engine.precision
    full = precision == "fp32" or (precision == "auto" and config.launch.gpus_per_node == 0)
    return FP32 if full else 2


def kept_bytes(config: Config) -> int:
    """Bytes that autograd keeps of one clip between the forward and the backward pass, parameters not counted.

    A block of width D keeps for each token: two inputs of norms in float32 and, in the width of the computation, the
    inputs of qkv and of the projection (the latter is attention's output), q, k, v, the input of the MLP, and the
    input and output of GELU at 4 D each: 14 D values. With activation checkpointing a block keeps its input alone.
    """
    size, clip, width = resolve(config.model), config.clip, compute_bytes(config)
    if config.task == "finetune":
        if config.finetune.frozen:
            return 0
        pixels = clip.cubes * clip.cube_pixels * width
        return pixels + _stack_bytes(config, clip.cubes, size.width, size.depth, size.heads)
    masked = masked_cubes(config.mask.kind, config.mask.ratio, clip.slots, clip.cubes_per_slot)
    visible = clip.cubes - masked
    heads = output_sizes(config)
    trunks = 1 if config.model.decoder == "shared" else len(heads)
    # fp32 linears read one tensor where autocast casts a copy for each of them
    readers = (trunks, len(heads) // trunks) if width < FP32 else (1, 1)

    encoder = visible * clip.cube_pixels * width
    encoder += _stack_bytes(config, visible, size.width, size.depth, size.heads)
    encoder += visible * size.width * (FP32 + readers[0] * width)  # final norm: its input, and its output's readers
    decoder = _stack_bytes(config, clip.cubes, size.decoder_width, config.model.decoder_depth, size.decoder_heads)
    decoder += clip.cubes * size.decoder_width * FP32 + masked * size.decoder_width * readers[1] * width
    loss = 2 * FP32 * masked * sum(heads.values())  # predictions and targets
    return encoder + trunks * decoder + loss


def _stack_bytes(config: Config, tokens: int, width: int, depth: int, heads: int) -> int:
    every = {"none": 0, "full": 1, "every_n": config.model.checkpoint_every}[config.model.activation_checkpointing]
    recomputed = -(-depth // every) if every else 0
    whole = _block_bytes(tokens, width, heads, compute_bytes(config))
    return recomputed * tokens * width * FP32 + (depth - recomputed) * whole


def _block_bytes(tokens: int, width: int, heads: int, value: int) -> int:
    statistics = 4 * FP32 + heads * FP32  # mean and deviation of two norms; attention's normaliser of each head
    return tokens * (2 * width * FP32 + 14 * width * value + statistics)


def _transient_bytes(config: Config) -> int:
    """Bytes of one clip that come on top: its pixels twice (the clip, and cut into patches), and a block recomputed."""
    clip, size = config.clip, resolve(config.model)
    pixels = 2 * clip.frames * clip.size**2 * 3
    if config.model.activation_checkpointing == "none":
        return pixels
    return pixels + _block_bytes(clip.cubes, size.decoder_width, size.decoder_heads, compute_bytes(config))


def _state_memory(config: Config, parameters: int, ranks: int) -> StateMemory:
    stage = config.engine.zero

    def share(size: int, from_stage: int) -> int:
        return -(-size // ranks) if stage >= from_stage else size

    master_and_moments = (12 if stage else 8) * parameters
    cast_weights = 0 if compute_bytes(config) == FP32 else compute_bytes(config) * parameters
    messages = 2 * BUCKET * FP32 if stage else 0
    return StateMemory(
        parameters=share(FP32 * parameters, 3),
        gradients=share(FP32 * parameters, 2),
        optimizer=share(master_and_moments, 1),
        buffers=cast_weights + messages,
    )


def _videos(config: Config) -> int | None:
    data = config.data
    if is_remote(data.shards):
        try:
            return load_manifest(data.shards, replace(data, remote_retries=0, remote_timeout=5)).samples
        except UnreachableError:
            return None
    if not data.shards or not (Path(data.shards) / MANIFEST).is_file():
        return None
    return load_manifest(data.shards).samples

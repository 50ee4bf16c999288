"""What a rank holds in memory during a step, by formula: states, activations, messages, and the most at once.

Counted are tensors. Tests hold the figures against what DeepSpeed and autograd really keep (`benchmarks/memory.py`
measures it) and against torch's own tracker for models that no test could train. Left out are workspaces of kernels,
fragmentation and the CUDA context: leave a tenth of the card free (:data:`motionmae.planning.gpus.USABLE`).
"""

from dataclasses import dataclass

from motionmae.config import Config
from motionmae.engine.deepspeed_engine import BUCKET, stage_of
from motionmae.models.targets import output_sizes
from motionmae.planning.flops import Parameters, count_classifier_parameters, count_parameters, step_cubes

FP32 = 4
"""Bytes of a float32: parameters, the residual stream, predictions and targets in every precision."""
_STAGE_0_MESSAGE = 500_000_000
"""Gradients that DeepSpeed copies into one message at stage 0; not a setting of its."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by what ZeRO partitions them, and the most that lives at once."""

    parameters: int
    """float32; partitioned at stage 3."""
    gradients: int
    """float32, when the optimiser steps; partitioned from stage 1 on."""
    optimizer: int
    """AdamW's two moments and, from stage 1 on, DeepSpeed's own copy of the parameters; partitioned from stage 1 on."""
    buffers: int
    """Position tables, and DeepSpeed's message buffers."""
    activations: int
    """At the end of the forward pass, 16-bit copies of the weights among them."""
    peak: int
    """Less than the sum where gradients grow while activations go."""


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of one clip between the forward and the backward pass, parameters not counted."""

    encoder: int
    decoders: int
    loss: int
    """Predictions and targets."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.encoder + self.decoders + self.loss


def predict_memory(config: Config, ranks: int, micro_batch_size: int = 0) -> Memory:
    """Return what a rank of ``ranks`` holds with the ZeRO stage (of one rank: 0) and checkpointing of ``config``.

    DeepSpeed at stage 3 gathers a parameter before its first use and lets go of it only if its next use is more than
    10^9 parameters away: models smaller than that are whole on every rank from the forward to the backward pass.

    Args:
        config: of the run.
        ranks: of the run.
        micro_batch_size: in place of ``engine.micro_batch_size``.
    """
    stage, videos = stage_of(config, ranks), micro_batch_size or config.engine.micro_batch_size
    count = trained_parameters(config)
    whole = FP32 * count.total
    trained = 0 if config.task == "finetune" and config.finetune.frozen else whole

    def share(size: int, from_stage: int) -> int:
        return -(-size // ranks) if stage >= from_stage else size

    clips = videos * config.data.repeated_sampling
    kept, passing = kept_bytes(config), transient_bytes(config)
    encoder_casts, decoder_casts = _kept_casts(config, count, stage)
    activations = clips * kept.total + encoder_casts + decoder_casts

    parameters, gradients = share(whole, 3), share(trained, 1)
    optimizer = share((3 if stage else 2) * trained, 1)
    message = FP32 * BUCKET if stage else min(trained, FP32 * _STAGE_0_MESSAGE)
    if ranks == 1:
        message = 0  # there is nobody to send one to
    if stage and compute_bytes(config) < FP32:  # a second buffer, for gradients that are sent in 16 bits
        message += (compute_bytes(config) if stage == 3 else FP32) * BUCKET
    lasting = parameters + optimizer + _tables(config) + (whole if config.optim.ema_decay else 0)
    lasting += gradients + message if stage == 3 else 0
    gathered = whole if stage == 3 and ranks > 1 else 0
    accumulates = config.optim.global_batch_size > videos * ranks
    waiting = share(trained, 2) if stage < 3 and accumulates else 0  # gradients of the micro-batches before

    casts = 0 if stage == 3 else _casts(config, count.total)
    forward = clips * (kept.total + passing.forward) + casts + waiting
    # the loss goes first, then activations go and gradients come of the decoders, then those of the encoder
    begin = activations + clips * passing.backward + waiting
    after_loss = begin - clips * kept.loss
    after_decoders = clips * (kept.encoder + passing.encoder_backward) + encoder_casts + FP32 * count.decoders
    backward = {
        0: max(begin, after_decoders, trained + message),
        1: max(begin, message + max(after_loss, after_decoders, trained), trained + gradients),
        # a rank makes its share of the gradients when the first message is full
        2: max(begin, message + max(after_loss, gradients + int(_unfinished(count) * after_loss))),
        3: begin,
    }[stage]
    # the optimiser's own copy of the gradients, and what an AdamW of many kernels makes in between
    step = trained if stage == 0 else (2 if stage < 3 else 1) * gradients
    pixels = clips * config.clip.frames * config.clip.size**2 * 3
    if config.launch.gpus_per_node:
        pixels *= 2  # the next micro-batch is copied while this one is computed on
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        buffers=_tables(config) + message,
        activations=activations,
        peak=lasting + pixels + max(forward + gathered, backward + gathered, step),
    )


def largest_micro_batch(config: Config, ranks: int, limit: float) -> int:
    """Return how many videos of a rank's forward pass fit into ``limit`` bytes; 0: not even one."""

    def fits(videos: int) -> bool:
        return predict_memory(config, ranks, videos).peak <= limit

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def trained_parameters(config: Config) -> Parameters:
    """Return the parameters of the task's model; a classifier's head, less than 1 %, is left out."""
    if config.task == "finetune":
        return Parameters(count_classifier_parameters(config, classes=0), 0)
    return count_parameters(config)


def compute_bytes(config: Config) -> int:
    """Bytes of a value inside a block: 2 under autocast, else 4; `auto` means autocast where there are GPUs."""
    precision = config.engine.precision
    full = precision == "fp32" or (precision == "auto" and config.launch.gpus_per_node == 0)
    return FP32 if full else 2


def kept_bytes(config: Config) -> Kept:
    """Return what autograd keeps of a clip.

    A block of width D keeps for each token: two inputs of norms in float32 and, in the width of the computation, the
    inputs of qkv and of the projection (the latter is attention's output), q, k, v, the input of the MLP, and the
    input and output of GELU at 4 D each: 14 D values; and what attention keeps. With activation checkpointing a block
    keeps its input alone.
    """
    size, clip, width = config.model.dimensions, config.clip, compute_bytes(config)
    if config.task == "finetune":
        if config.finetune.frozen:
            return Kept(0, 0, 0)
        pixels = clip.cubes * clip.cube_pixels * width
        return Kept(pixels + _stack_bytes(config, clip.cubes, size.width, size.depth, size.heads), 0, 0)
    cubes, heads, trunks = step_cubes(config), output_sizes(config), _trunks(config)
    visible, rebuilt = cubes.visible, cubes.rebuilt
    # fp32 linears read one tensor where autocast casts a copy for each of them
    readers = (trunks, len(heads) // trunks) if width < FP32 else (1, 1)

    encoder = visible * clip.cube_pixels * width
    encoder += _stack_bytes(config, visible, size.width, size.depth, size.heads)
    encoder += visible * size.width * (FP32 + readers[0] * width)  # final norm: its input, and its output's readers
    decoder = _stack_bytes(
        config, cubes.decoder, size.decoder_width, config.model.decoder_depth, size.decoder_heads, rebuilt
    )
    decoder += rebuilt * size.decoder_width * (FP32 + readers[1] * width)
    return Kept(encoder, trunks * decoder, 2 * FP32 * rebuilt * sum(heads.values()))


@dataclass(frozen=True)
class Transient:
    """Bytes of one clip that come on top of what is kept, where most is kept."""

    forward: int
    """When the loss is taken."""
    backward: int
    """When the backward pass begins, or its first block is recomputed."""
    encoder_backward: int
    """When the encoder's last block goes backward."""


def transient_bytes(config: Config) -> Transient:
    """Return what a clip takes for a moment: patches, the loss's temporaries, recomputed blocks."""
    clip, size, width = config.clip, config.model.dimensions, compute_bytes(config)
    patches = clip.cubes * clip.cube_pixels
    recomputes = config.model.activation_checkpointing != "none"
    if config.task == "finetune":
        block = _block_bytes(config, clip.cubes, size.width, size.heads) if recomputes else 0
        return Transient(patches, block, block)
    cubes, heads = step_cubes(config), output_sizes(config)
    losses = FP32 * cubes.rebuilt * max(heads.values())
    predictions = width * cubes.rebuilt * sum(heads.values()) if width < FP32 else 0  # before they become float32
    block = encoder_block = 0
    if recomputes:
        block = _block_bytes(config, cubes.decoder, size.decoder_width, size.decoder_heads)
        encoder_block = _block_bytes(config, cubes.visible, size.width, size.heads)
    recomputed = max(block - kept_bytes(config).loss, 0)  # predictions and targets are gone by then
    return Transient(patches + 2 * losses + predictions, max(losses, recomputed), encoder_block)


def _trunks(config: Config) -> int:
    return 1 if config.model.decoder == "shared" else len(output_sizes(config))


def _casts(config: Config, parameters: int) -> int:
    """16-bit copies of weights, which autocast makes once a pass."""
    return 0 if compute_bytes(config) == FP32 else compute_bytes(config) * parameters


def _kept_casts(config: Config, count: Parameters, stage: int) -> tuple[int, int]:
    """Copies that encoder and decoders keep for the backward pass: those of blocks that are not recomputed.

    At stage 3 DeepSpeed's own linear layer keeps the parameter instead.
    """
    every = _recompute_every(config)
    share = 0.0 if stage == 3 else 1 - 1 / every if every else 1.0
    return int(share * _casts(config, count.encoder)), int(share * _casts(config, count.decoders))


def _unfinished(count: Parameters) -> float:
    """Share of the activations that is left when the backward pass has made one message of gradients."""
    return max(1 - BUCKET / max(count.total, 1), 0.0)


def _tables(config: Config) -> int:
    """Position tables that are not trained (those that are count as parameters), one in each stack."""
    if config.model.pos_embed == "learnable":
        return 0
    size = config.model.dimensions
    decoders = 0 if config.task == "finetune" else _trunks(config) * size.decoder_width
    return FP32 * config.clip.cubes * (size.width + decoders)


def _recompute_every(config: Config) -> int:
    return {"none": 0, "full": 1, "every_n": config.model.checkpoint_every}[config.model.activation_checkpointing]


def _stack_bytes(config: Config, tokens: int, width: int, depth: int, heads: int, narrowed: int = 0) -> int:
    """A stack of blocks; with ``narrowed``, the last computes so many tokens only."""
    every = _recompute_every(config)
    recomputed = -(-depth // every) if every else 0
    whole = _block_bytes(config, tokens, width, heads)
    total = recomputed * tokens * width * FP32 + (depth - recomputed) * whole
    if narrowed and not (every and (depth - 1) % every == 0):
        total += _last_block_bytes(config, tokens, narrowed, width, heads) - whole
    return total


def _last_block_bytes(config: Config, tokens: int, kept: int, width: int, heads: int) -> int:
    """All tokens are normalised and are keys and values; those kept are copied once more to ask."""
    value = compute_bytes(config)
    everywhere = tokens * (width * FP32 + 3 * width * value + 2 * FP32)
    masked = kept * (width * FP32 + 12 * width * value + 2 * FP32)
    return everywhere + masked + _attention_bytes(config, kept, tokens, heads)


def _block_bytes(config: Config, tokens: int, width: int, heads: int) -> int:
    statistics = 4 * FP32  # mean and deviation of two norms
    inside = 2 * width * FP32 + 14 * width * compute_bytes(config) + statistics
    return tokens * inside + _attention_bytes(config, tokens, tokens, heads)


def _attention_bytes(config: Config, asking: int, asked: int, heads: int) -> int:
    """A normaliser for each head and token; all weights in bfloat16 on a CPU (:mod:`motionmae.models.attention`)."""
    if config.engine.precision == "bf16" and config.launch.gpus_per_node == 0:
        return compute_bytes(config) * heads * asking * asked
    return FP32 * heads * asking

"""Memory of a rank during a step, by formula: states, activations, messages, and the peak.

The figures count tensors. Tests compare them with the tensors that DeepSpeed and autograd hold (measured by
`benchmarks/memory.py`), and with torch's tracker for models too large for a test. Kernel workspaces, fragmentation, and
the CUDA context are not counted; :data:`motionmae.planning.gpus.USABLE` leaves a tenth of the GPU for them.
"""

from dataclasses import dataclass

from motionmae.config import Config
from motionmae.config.training import BUCKET
from motionmae.models.masking import step_cubes
from motionmae.models.targets import output_sizes
from motionmae.planning.flops import (
    Parameters,
    count_classifier_parameters,
    count_parameters,
    decoder_trunks,
)

FP32 = 4
"""Bytes of a float32. Parameters, the residual stream, predictions, and targets are float32 at every precision."""
_STAGE_0_MESSAGE = 500_000_000
"""Gradients in one all-reduce of DeepSpeed at stage 0; DeepSpeed has no setting for this number."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by ZeRO's categories, and their peak."""

    parameters: int  # float32; partitioned at stage 3
    gradients: int  # float32, at the optimiser step; partitioned from stage 1 on
    optimizer: int
    """AdamW's two moments and, from stage 1 on, DeepSpeed's copy of the parameters; partitioned from stage 1 on."""
    buffers: int  # position tables and DeepSpeed's message buffers
    activations: int  # at the end of the forward pass, including 16-bit copies of the weights
    peak: int  # may be below the sum: the backward pass frees activations while it allocates gradients


@dataclass(frozen=True)
class SavedBytes:
    """Bytes that autograd saves for one clip between forward and backward pass, without parameters."""

    encoder: int
    decoders: int
    loss: int  # predictions and targets

    @property
    def total(self) -> int:
        return self.encoder + self.decoders + self.loss


def predict_memory(config: Config, ranks: int, micro_batch_size: int = 0) -> Memory:
    """Predict the memory of each rank. ``micro_batch_size`` overrides ``engine.micro_batch_size``; 0 keeps it.

    At stage 3, DeepSpeed gathers a parameter before its first use, and releases the parameter only if its next use is
    more than 10^9 parameters away. Smaller models are whole on every rank from the forward to the backward pass.
    """
    stage, videos = config.engine.stage(ranks), micro_batch_size or config.engine.micro_batch_size
    count = trained_parameters(config)
    whole = FP32 * count.total
    trained = 0 if config.task == "finetune" and config.finetune.frozen else whole

    def share(size: int, from_stage: int) -> int:
        return -(-size // ranks) if stage >= from_stage else size

    clips = videos * config.data.repeated_sampling
    saved, transient = saved_bytes(config), transient_bytes(config)
    encoder_casts, decoder_casts = _saved_casts(config, count, stage)
    activations = clips * saved.total + encoder_casts + decoder_casts

    parameters, gradients = share(whole, 3), share(trained, 1)
    optimizer = share((3 if stage else 2) * trained, 1)
    message = _message_bytes(config, stage, trained) if ranks > 1 else 0
    lasting = parameters + optimizer + _tables(config) + (whole if config.optim.ema_decay else 0)
    lasting += gradients + message if stage == 3 else 0
    gathered = whole if stage == 3 and ranks > 1 else 0
    accumulates = config.optim.global_batch_size > videos * ranks
    waiting = share(trained, 2) if stage < 3 and accumulates else 0  # gradients of earlier micro-batches

    casts = 0 if stage == 3 else _casts(config, count.total)
    forward = clips * (saved.total + transient.forward) + casts + waiting
    # The loss is freed first. Then the decoders' activations are freed and gradients allocated, then the encoder's.
    begin = activations + clips * transient.backward + waiting
    after_loss = begin - clips * saved.loss
    after_decoders = clips * (saved.encoder + transient.encoder_backward) + encoder_casts + FP32 * count.decoders
    # At stage 2, and at stage 1 with overlap, a rank allocates its share of the gradients at the first full message.
    unfinished = max(1 - BUCKET / max(count.total, 1), 0.0)  # share of the activations left at that moment
    backward = {
        0: max(begin, after_decoders, trained + message),
        1: max(begin, message + max(after_loss, after_decoders, trained), trained + gradients),
        2: max(begin, message + max(after_loss, gradients + int(unfinished * after_loss))),
        3: max(begin, min(message, whole) + int(unfinished * after_loss)),  # a copy of the message
    }[2 if stage == 1 and config.engine.overlap_comm else stage]
    # the optimiser's copy of the gradients, and temporaries of AdamW's separate kernels
    step = trained if stage == 0 else (2 if stage < 3 else 1) * gradients
    pixels = clips * config.clip.frames * config.clip.size**2 * 3
    if config.launch.gpus_per_node:
        pixels *= 2  # the next micro-batch is copied to the device meanwhile
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        buffers=_tables(config) + message,
        activations=activations,
        peak=lasting + pixels + max(forward + gathered, backward + gathered, step),
    )


def _message_bytes(config: Config, stage: int, trained: int) -> int:
    """Count the bytes of DeepSpeed's message buffers. ``trained`` is the size of all trained parameters in fp32."""
    if stage == 0:
        return min(trained, FP32 * _STAGE_0_MESSAGE)
    is_mixed = compute_bytes(config) < FP32 and config.engine.reduce_dtype != "fp32"  # a buffer for each number format
    if stage == 3:
        return (FP32 + (compute_bytes(config) if is_mixed else 0)) * BUCKET
    buffers = (2 if is_mixed else 1) * (2 if config.engine.overlap_comm else 1)
    return buffers * FP32 * BUCKET


@dataclass(frozen=True)
class CheckpointMemory:
    """Host memory of a node for checkpoints, in bytes."""

    staging_once: int  # pinned copy of the state, from which checkpoints are written
    staging: int  # with a second copy, from which memory copies are written
    copies: int  # memory copies in /dev/shm: of its own ranks and of another node's, while new ones replace the former


def predict_checkpoint_memory(config: Config) -> CheckpointMemory:
    """Predict the host memory of each node for checkpoints and memory copies."""
    nodes, checkpoint = config.launch.nodes, config.checkpoint
    is_frozen = config.task == "finetune" and config.finetune.frozen
    state = 0 if is_frozen else (4 if config.optim.ema_decay else 3) * FP32 * trained_parameters(config).total
    share = -(-state // nodes)
    kept = share if nodes == 1 else 2 * share
    copies = bool(checkpoint.memory_steps)
    return CheckpointMemory(share, (2 if copies else 1) * share, copies=2 * kept if copies else 0)


def largest_micro_batch(config: Config, ranks: int, limit: float) -> int:
    """Find the largest number of videos in a rank's forward pass that fits into ``limit`` bytes; 0 if none fits."""

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
    """Count the parameters of the task's model without a classifier's head, which is less than 1 %."""
    if config.task == "finetune":
        return Parameters(count_classifier_parameters(config, classes=0), 0)
    return count_parameters(config)


def compute_bytes(config: Config) -> int:
    """Return the bytes of a value inside a block: 2 under autocast, else 4. `auto` means autocast on GPUs."""
    precision = config.engine.precision
    full = precision == "fp32" or (precision == "auto" and config.launch.gpus_per_node == 0)
    return FP32 if full else 2


def saved_bytes(config: Config) -> SavedBytes:
    """Count the bytes that autograd saves for one clip.

    For each token, a block of width D saves the inputs of two norms in float32. In the compute precision it saves 14 D
    values: the inputs of qkv and of the projection (attention's output), q, k, v, the input of the MLP, and the input
    and output of GELU at 4 D each. Attention saves its normalisers. A recomputed block saves only its input.
    """
    size, clip, width = config.model.dimensions, config.clip, compute_bytes(config)
    if config.task == "finetune":
        if config.finetune.frozen:
            return SavedBytes(0, 0, 0)
        pixels = clip.cubes * clip.cube_pixels * width
        return SavedBytes(pixels + _stack_bytes(config, clip.cubes, size.width, size.depth, size.heads), 0, 0)
    cubes, heads, trunks = step_cubes(config), output_sizes(config), decoder_trunks(config)
    visible, queries = cubes.visible, cubes.queries
    # in fp32 all linear layers read one tensor; autocast casts a copy for each layer
    readers = (trunks, len(heads) // trunks) if width < FP32 else (1, 1)

    encoder = visible * clip.cube_pixels * width
    encoder += _stack_bytes(config, visible, size.width, size.depth, size.heads)
    encoder += visible * size.width * (FP32 + readers[0] * width)  # input and readers of the final norm
    decoder = _stack_bytes(
        config, cubes.decoder, size.decoder_width, config.model.decoder_depth, size.decoder_heads, queries
    )
    decoder += queries * size.decoder_width * (FP32 + readers[1] * width)
    return SavedBytes(encoder, trunks * decoder, 2 * FP32 * queries * sum(heads.values()))


@dataclass(frozen=True)
class Transient:
    """Temporary bytes of one clip, besides the bytes saved by autograd, at three moments."""

    forward: int  # at the computation of the loss
    backward: int  # at the beginning of the backward pass, or at the recomputation of its first block
    encoder_backward: int  # at the backward pass of the encoder's last block


def transient_bytes(config: Config) -> Transient:
    """Count the temporary bytes of one clip: patches, temporaries of the loss, recomputed blocks."""
    clip, size, width = config.clip, config.model.dimensions, compute_bytes(config)
    patches = clip.cubes * clip.cube_pixels
    recomputes = config.model.activation_checkpointing != "none"
    if config.task == "finetune":
        block = _block_bytes(config, clip.cubes, size.width, size.heads) if recomputes else 0
        return Transient(patches, block, block)
    cubes, heads = step_cubes(config), output_sizes(config)
    losses = FP32 * cubes.queries * max(heads.values())
    predictions = width * cubes.queries * sum(heads.values()) if width < FP32 else 0  # before the cast to float32
    block = encoder_block = 0
    if recomputes:
        block = _block_bytes(config, cubes.decoder, size.decoder_width, size.decoder_heads)
        encoder_block = _block_bytes(config, cubes.visible, size.width, size.heads)
    recomputed = max(block - saved_bytes(config).loss, 0)  # predictions and targets are freed by then
    return Transient(patches + 2 * losses + predictions, max(losses, recomputed), encoder_block)


def _casts(config: Config, parameters: int) -> int:
    """Count the bytes of the 16-bit copies of weights that autocast casts once per pass."""
    return 0 if compute_bytes(config) == FP32 else compute_bytes(config) * parameters


def _saved_casts(config: Config, count: Parameters, stage: int) -> tuple[int, int]:
    """Count the saved bytes of 16-bit weights. At stage 3, DeepSpeed's linear layer saves the parameter instead."""
    every = config.model.recompute_every
    share = 0.0 if stage == 3 else 1 - 1 / every if every else 1.0
    return int(share * _casts(config, count.encoder)), int(share * _casts(config, count.decoders))


def _tables(config: Config) -> int:
    """Count the bytes of fixed position tables, one per stack. Learnable tables count as parameters."""
    if config.model.pos_embed == "learnable":
        return 0
    size = config.model.dimensions
    decoders = 0 if config.task == "finetune" else decoder_trunks(config) * size.decoder_width
    return FP32 * config.clip.cubes * (size.width + decoders)


def _stack_bytes(config: Config, tokens: int, width: int, depth: int, heads: int, queries: int = 0) -> int:
    """Count the saved bytes of a stack of blocks; the last block computes only ``queries`` tokens, or all if 0."""
    every = config.model.recompute_every
    recomputed = -(-depth // every) if every else 0
    whole = _block_bytes(config, tokens, width, heads)
    total = recomputed * tokens * width * FP32 + (depth - recomputed) * whole
    if queries and not (every and (depth - 1) % every == 0):
        total += _block_bytes(config, tokens, width, heads, queries) - whole
    return total


def _block_bytes(config: Config, tokens: int, width: int, heads: int, queries: int = 0) -> int:
    """Count the saved bytes of a block. A block with ``queries`` computes only these tokens and copies them once more.

    Attention saves a normaliser per head and query, and all weights in bfloat16 on a CPU (see
    :func:`motionmae.models.vit.attend`).
    """
    value, computed = compute_bytes(config), queries or tokens
    statistics = 2 * FP32  # mean and deviation of one norm
    inputs = tokens * (width * FP32 + 3 * width * value + statistics)
    outputs = computed * (width * FP32 + (12 if queries else 11) * width * value + statistics)
    stores_weights = config.engine.precision == "bf16" and config.launch.gpus_per_node == 0
    return inputs + outputs + heads * computed * (value * tokens if stores_weights else FP32)

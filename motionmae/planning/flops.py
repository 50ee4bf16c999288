"""Parameters and floating-point operations by formula, without building a model.

Papers on video transformers print multiply-additions and call them FLOPs. :func:`forward_gflops` counts that way and
reproduces ViT-B's 180 and ViT-L's 598 "GFLOPs" per view. :func:`step_flops` counts a multiplication and an addition as
two operations, as peak rates of processors do.

Only the matrix products of linear layers and attention are counted. Norms, GELU, softmax, and additions are below 1 %
of the work.
"""

from dataclasses import dataclass

from motionmae.config import Config
from motionmae.models.masking import step_cubes
from motionmae.models.targets import output_sizes


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained parameters of a model by part."""

    encoder: int
    decoders: int

    @property
    def total(self) -> int:
        return self.encoder + self.decoders


@dataclass(frozen=True)
class StepFlops:
    """Operations of one clip in one pre-training step. A multiply-addition counts as two."""

    encoder_forward: int
    decoders_forward: int
    backward: int
    recomputed: int  # forward passes repeated by activation checkpointing, which MFU does not count

    @property
    def model(self) -> int:
        """Forward and backward pass without recomputation."""
        return self.encoder_forward + self.decoders_forward + self.backward


def count_parameters(config: Config) -> Parameters:
    size, clip = config.model.dimensions, config.clip
    learnable = config.model.pos_embed == "learnable"
    encoder = (
        _linear(clip.cube_pixels, size.width)
        + size.depth * _block(size.width)
        + 2 * size.width  # final norm
        + learnable * clip.cubes * size.width
    )
    width = size.decoder_width
    trunk = (
        size.width * width  # no bias
        + width  # mask token
        + config.model.decoder_depth * _block(width)
        + 2 * width
        + learnable * clip.cubes * width
    )
    decoders = decoder_trunks(config) * trunk + sum(_linear(width, values) for values in output_sizes(config).values())
    return Parameters(encoder, decoders)


def count_classifier_parameters(config: Config, classes: int) -> int:
    """Count the parameters of the fine-tuning model (paper: 87, 305 and 632 M for B, L and H)."""
    width = config.model.dimensions.width
    return count_parameters(config).encoder + _linear(width, classes)  # the classifier's norm replaces the encoder's


def forward_gflops(config: Config, classes: int = 0) -> float:
    """Count the 10^9 multiply-additions of the encoder on one whole clip, and of a head with ``classes``.

    The paper calls this number the "GFLOPs" of a view: 180 for ViT-B and 598 for ViT-L at 16 x 224 x 224.
    """
    width = config.model.dimensions.width
    return (_encoder_macs(config, config.clip.cubes) + width * classes) / 1e9


def step_flops(config: Config) -> StepFlops:
    """Count the operations of one clip in one training step.

    A backward pass costs two forward passes: one gradient for each factor of a matrix product. The first projection
    needs only one of them, because pixels need no gradient.
    """
    size, clip, every = config.model.dimensions, config.clip, config.model.recompute_every
    pretraining = config.task == "pretrain"
    visible = step_cubes(config).visible if pretraining else clip.cubes
    encoder = _encoder_macs(config, visible)
    if not pretraining and config.finetune.frozen:
        return StepFlops(2 * encoder, 0, 0, 0)
    first = visible * clip.cube_pixels * size.width
    recomputed = -(-size.depth // every) * _recomputed_macs(visible, size.width) if every else 0
    decoders, recomputed_decoders = _decoder_macs(config) if pretraining else (0, 0)
    backward = 4 * (encoder + decoders) - 2 * first
    return StepFlops(2 * encoder, 2 * decoders, backward, 2 * (recomputed + recomputed_decoders))


def _decoder_macs(config: Config) -> tuple[int, int]:
    """Count the multiply-additions of all decoders in a forward pass, and those that are recomputed."""
    model, cubes, every = config.model, step_cubes(config), config.model.recompute_every
    width, visible, tokens = model.dimensions.decoder_width, cubes.visible, cubes.decoder
    # in the last block, visible tokens are keys and values only
    spared = visible * (10 * width * width + 2 * tokens * width)
    trunk = visible * model.dimensions.width * width + model.decoder_depth * _block_macs(tokens, width) - spared
    heads = sum(cubes.queries * width * values for values in output_sizes(config).values())
    recomputed = -(-model.decoder_depth // every) * _recomputed_macs(tokens, width) if every else 0
    if every and (model.decoder_depth - 1) % every == 0:
        recomputed -= spared - 4 * visible * width * width
    return decoder_trunks(config) * trunk + heads, decoder_trunks(config) * recomputed


def decoder_trunks(config: Config) -> int:
    """Count the decoders: one for all heads, or one for each head."""
    return 1 if config.model.decoder == "shared" else len(output_sizes(config))


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _block(width: int) -> int:
    """Count a block's parameters: two norms; q, k, v (biases for q and v only); projection; an MLP of 4 x width."""
    attention = 3 * width * width + 2 * width + _linear(width, width)
    return 4 * width + attention + _linear(width, 4 * width) + _linear(4 * width, width)


def _block_macs(tokens: int, width: int) -> int:
    """Count a block's multiply-additions: 12 products width x width per token, and two of tokens x tokens x width."""
    return 12 * tokens * width * width + 2 * tokens * tokens * width


def _recomputed_macs(tokens: int, width: int) -> int:
    """Count a recomputed block without the MLP's second matrix, before which torch has all that backward reads."""
    return _block_macs(tokens, width) - 4 * tokens * width * width


def _encoder_macs(config: Config, tokens: int) -> int:
    size = config.model.dimensions
    return tokens * config.clip.cube_pixels * size.width + size.depth * _block_macs(tokens, size.width)

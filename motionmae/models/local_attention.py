"""Initial weights of a decoder whose masked cubes attend to visible cubes nearby.

A decoder with random weights attends to all cubes alike, masked ones included. Its blocks must learn where to look and
what to read there. Neither helps without the other, and the gradient of both begins near zero. Colours of the whole
clip help the space head meanwhile; the time head gains nothing and predicts the mean of its target. Here the decoder
begins by looking near, as ConViT's soft convolutions do (d'Ascoli et al., 2021), and only has to learn what to read.
"""

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from motionmae.config import ClipConfig
from motionmae.models.timm_blocks import Attention

NEIGHBOURS = ((0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0))
"""Offsets in (time, row, column) on which the heads of successive blocks centre their attention, in turn."""
DEVIATION = 0.7
"""Standard deviation of the attention around a head's centre, in cubes."""
MASKED_LOGIT = 8.0
"""Decrease of the initial attention logit of a masked cube, because masked cubes hold no information yet."""
MASK_TOKEN_STD = 0.5
"""Standard deviation of the mask token. Keys recognise masked cubes by it."""
CONTENT_GAIN = 0.5
"""Factor on the embedding of visible cubes. Their content would hide their position from the keys."""
RANDOM_GAIN = 0.3
"""Factor on the random weights of queries and keys in the channels that are not constructed."""
OUTPUT_GAIN = 0.01
"""Factor on the output layers. Predictions begin near the mean, and the blocks do not first learn to be silent."""

_POSITION = 6  # channels of a head for the position, cosine and sine of three coordinates; the next one is for masks


@torch.no_grad()
def attend_locally_(
    attentions: Iterable[Attention],
    embed: nn.Linear,
    mask_token: Tensor,
    outputs: Iterable[nn.Linear],
    table: Tensor,
    clip: ClipConfig,
) -> None:
    """Change the random initial weights of a decoder so that it attends locally.

    Queries and keys get the position in channels whose product falls with the distance from the head's centre. A linear
    map finds the position in a token, because ``table`` (N, width) consists of sines and cosines of the coordinates.
    """
    embed.weight *= CONTENT_GAIN
    mask_token *= MASK_TOKEN_STD / mask_token.std()
    for head in outputs:
        head.weight *= OUTPUT_GAIN
    position_variance = float(table.var(1, unbiased=False).mean())
    content_variance = float(embed.weight.square().sum(1).mean())  # the encoder's output has unit variance
    key = _fit(table, _features(clip, (0, 0, 0)), position_variance, content_variance)
    direction = mask_token / mask_token.norm()
    masked = float(mask_token.norm()) / math.sqrt(position_variance + float(mask_token.var()))  # after the first norm
    centres = itertools.cycle(NEIGHBOURS)
    for attention in attentions:
        heads = attention.num_heads
        queries, keys, _ = attention.qkv.weight.unflatten(0, (3, heads, -1))  # (heads, channels, width)
        assert attention.q_bias is not None
        for q, k, bias in zip(queries, keys, attention.q_bias.view(heads, -1), strict=True):
            query = _fit(table, _features(clip, next(centres)), position_variance, 0.0)
            channels = len(q)
            q *= RANDOM_GAIN
            k *= RANDOM_GAIN
            q[:_POSITION] = query * channels**0.25  # the attention divides by the root of channels
            k[:_POSITION] = key * channels**0.25
            q[_POSITION] = 0
            k[_POSITION] = -direction
            bias[_POSITION] = MASKED_LOGIT * math.sqrt(channels) / masked


def _features(clip: ClipConfig, offset: tuple[int, int, int]) -> Tensor:
    """Return (N, 6) features of the cubes shifted by ``offset``. Their products with the features of unshifted cubes
    are, up to a constant, the logarithm of a normal density with :data:`DEVIATION`.
    """
    lengths = (clip.temporal_patches, clip.grid_size, clip.grid_size)
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in lengths), indexing="ij")
    features = []
    for axis, shift, length in zip(axes, offset, lengths, strict=True):
        frequency = math.pi / max(length, 8)  # half a wave spans the clip: no position repeats
        angles = frequency * (axis.flatten() + shift)
        features += [angles.cos() / (DEVIATION * frequency), angles.sin() / (DEVIATION * frequency)]
    return torch.stack(features, 1)


def _fit(table: Tensor, features: Tensor, position_variance: float, content_variance: float) -> Tensor:
    """Fit weights (6, width) that read ``features`` (N, 6) from a normalised token: its position plus its content."""
    table = table.double()
    variance = position_variance + content_variance
    positions = (table - table.mean(1, keepdim=True)) / math.sqrt(variance)
    noise = content_variance / variance + 1e-4
    moments = positions.T @ positions / len(positions) + noise * torch.eye(table.shape[1], dtype=torch.float64)
    return torch.linalg.solve(moments, positions.T @ features / len(positions)).T.float()

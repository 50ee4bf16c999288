"""Plain ViT encoder and decoders: timm's blocks, joint space-time attention, no class token (paper section 4)."""

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from motionmae.config import ClipConfig, ModelConfig
from motionmae.models.cubes import all_cubes, gather_cubes
from motionmae.models.local_attention import attend_locally_
from motionmae.models.timm_blocks import Attention, Block
from motionmae.models.whitening import whiten_

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue in [0, 1]. The encoder subtracts it."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue in [0, 1]. The encoder divides by it."""
NORM_EPS = 1e-6


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v. q and the result are (B, heads, Q, D), k and v are (B, heads, K, D).

    torch's fused kernels compute it, except for training in bfloat16 on a CPU. There, torch's flash kernel runs its
    backward pass in float32, and a training step takes 1.4 to 1.5 times as long
    (docs/measurements/notes/performance.md). Plain matrix products use the bfloat16 units in both directions. Like
    VideoMAE's own code, they store the attention weights for the backward pass: B * heads * Q * K values per block.
    """
    trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not (trained and q.device.type == "cpu" and q.dtype == torch.bfloat16):
        return functional.scaled_dot_product_attention(q, k, v)
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B * heads, tokens, D)
    # baddbmm scales in float32, before the scores (B * heads, Q, K) are rounded to bfloat16
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=q.shape[2] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).view(shape)


class JointAttention(Attention):
    """timm's attention. With ``num_queries``, only the last ``num_queries`` tokens are queries."""

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:  # type: ignore[override]
        """Attend to all K tokens: (B, K, width) -> (B, num_queries, width); by default num_queries is K."""
        width, split = x.shape[2], (self.num_heads, -1)
        q_weight, kv_weight = self.qkv.weight.split([width, 2 * width])
        kv_bias = functional.pad(self.v_bias, (width, 0))  # k has no bias
        if num_queries is None:
            bias = torch.cat([self.q_bias, kv_bias])
            q, k, v = _heads(functional.linear(x, self.qkv.weight, bias).unflatten(2, (3, *split)))
        else:
            q = functional.linear(x[:, -num_queries:], q_weight, self.q_bias).unflatten(2, split).transpose(1, 2)
            k, v = _heads(functional.linear(x, kv_weight, kv_bias).unflatten(2, (2, *split)))
        # q: (B, heads, num_queries, width / heads); k and v: (B, heads, K, width / heads)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


def _heads(parts: Tensor) -> list[Tensor]:
    """Split (B, K, n, heads, D) into n tensors (B, heads, K, D).

    Their gradients are then stacked in the layout of the product, without another copy.
    """
    return [part.transpose(1, 2) for part in parts.unbind(2)]


class JointBlock(Block):
    """timm's block with :class:`JointAttention`."""

    def __init__(self, width: int, heads: int, **options: Any):
        super().__init__(width, heads, **options)
        with torch.random.fork_rng(devices=[]):  # keeps the initial weights equal to those of timm's own block
            self.attn = JointAttention(width, heads, qkv_bias=True)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:  # type: ignore[override]
        """Run the block: (B, K, width) -> the same shape, or (B, num_queries, width) for only the last tokens."""
        query = x if num_queries is None else x[:, -num_queries:]
        x = query + self.drop_path1(self.attn(self.norm1(x), num_queries))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class BlockStack(nn.ModuleList):
    """Transformer blocks in sequence, with optional activation checkpointing.

    The blocks are timm's BEiT blocks without relative positions. q and v have a bias and k has none, as in VideoMAE.
    The drop-path rate grows linearly from 0 in the first block to ``drop_path`` in the last block.
    """

    def __init__(self, width: int, depth: int, heads: int, model: ModelConfig, drop_path: float = 0.0):
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=NORM_EPS))  # cast to the type that timm declares
        super().__init__(JointBlock(width, heads, qkv_bias=True, norm_layer=norm, drop_path=rate) for rate in rates)
        self.recompute_every = model.recompute_every
        self.random = drop_path > 0

    def forward(self, tokens: Tensor, num_queries: int | None = None) -> Tensor:
        """Run all blocks: (B, K, width) -> the same shape.

        With ``num_queries``, the last block computes only the last ``num_queries`` tokens: (B, num_queries, width).
        """
        for number, block in enumerate(self):
            inputs = (tokens, num_queries if number == len(self) - 1 else None)
            if self.recompute_every and number % self.recompute_every == 0 and torch.is_grad_enabled():
                tokens = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=self.random)
            else:
                tokens = block(*inputs)
        return tokens


class PositionTable(nn.Module):
    """Table of position embeddings (N, width) with one vector per cube of the clip, looked up by cube number.

    A fixed table is a buffer that checkpoints omit, because it can be recomputed. A learnable table (paper section 3)
    is a parameter, initialised from a truncated normal distribution of standard deviation 0.02.
    """

    def __init__(self, temporal_patches: int, grid_size: int, width: int, kind: str):
        super().__init__()
        self.table: Tensor
        cubes = temporal_patches * grid_size**2
        if kind == "learnable":
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(cubes, width), std=0.02))
        elif kind == "sinusoidal":
            self.register_buffer("table", sinusoidal_table(cubes, width), persistent=False)
        else:
            self.register_buffer("table", separate_table(temporal_patches, grid_size, width), persistent=False)

    def forward(self, cubes: Tensor | None = None) -> Tensor:
        """Look up ``cubes``: int64 (B, K) -> (B, K, width). Without ``cubes``, return the whole table (N, width)."""
        # functional.embedding is ten times as fast on a CPU as plain indexing
        return self.table if cubes is None else functional.embedding(cubes, self.table)


def sinusoidal_table(cubes: int, width: int) -> Tensor:
    """Return VideoMAE's sinusoidal table (cubes, width), float32. The cube number is the only coordinate.

    Channels 2i and 2i+1 hold the sine and cosine of ``number / 10000 ** (2i / width)``.
    """
    channels = torch.arange(width, dtype=torch.float64)
    periods = 10000 ** (2 * (channels // 2) / width)
    angles = torch.arange(cubes, dtype=torch.float64)[:, None] / periods  # (cubes, width)
    return torch.where(channels.remainder(2) == 0, angles.sin(), angles.cos()).float()


def separate_table(temporal_patches: int, grid_size: int, width: int) -> Tensor:
    """Return V-JEPA's sinusoidal table (N, width), float32, with separate channels for time, row and column.

    Each coordinate takes a third of the channels, rounded up to an even number; surplus channels at the end are cut.
    The first half of each third holds the sines of ``coordinate / 10000 ** (i / half)``, the second half the cosines.
    """
    half = math.ceil(width / 6)
    periods = 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    counts = (temporal_patches, grid_size, grid_size)
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float64) for count in counts), indexing="ij")
    angles = [axis.reshape(-1, 1) / periods for axis in axes]  # (cubes, half) each
    return torch.cat([wave for axis in angles for wave in (axis.sin(), axis.cos())], 1)[:, :width].float()


class Encoder(nn.Module):
    """ViT encoder of the uint8 pixels of visible cubes (tubelets). Fine-tuning omits the final norm."""

    def __init__(self, clip: ClipConfig, model: ModelConfig, *, drop_path: float = 0.0, final_norm: bool = True):
        super().__init__()
        size = model.dimensions
        self.clip = clip
        self.scale: Tensor
        self.shift: Tensor
        self.project = nn.Linear(clip.cube_pixels, size.width)
        self.pos_embed = PositionTable(clip.temporal_patches, clip.grid_size, size.width, model.pos_embed)
        self.blocks = BlockStack(size.width, size.depth, size.heads, model, drop_path)
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS) if final_norm else nn.Identity()
        mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
        pixels = clip.cube_pixels // 3
        # scale and shift that map grey levels to normalised pixels, repeated for every pixel of a cube
        self.register_buffer("scale", (1 / (255 * std)).repeat(pixels), persistent=False)
        self.register_buffer("shift", (-mean / std).repeat(pixels), persistent=False)
        init_linear(self.blocks)
        if model.patch_embed_init != "pytorch":
            init_linear(self.project)
        if model.patch_embed_init == "whitened":
            whiten_(self.project.weight, clip)

    def forward(self, patches: Tensor, cubes: Tensor | None = None) -> Tensor:
        """Encode the visible cubes, int64 (B, V). Without ``cubes``, encode all N cubes of the clip.

        Patches are uint8 (B, T, P, R) from :func:`motionmae.models.cubes.cut_patches`. The result is (B, V, width).
        """
        if cubes is None:
            pixels = all_cubes(patches, self.clip.cube_frames)
        else:
            pixels = gather_cubes(patches, cubes, self.clip.cube_frames)
        # pixels: uint8 (B, V, p0 * p1 * p2 * 3); masked cubes are neither normalised nor projected
        tokens = self.project(torch.addcmul(self.shift, pixels.float(), self.scale))
        return self.norm(self.blocks(tokens + self.pos_embed(cubes)))


class Decoder(nn.Module):
    """ViT decoder with one linear head per target. ``outputs`` maps each head's name to its values per cube."""

    def __init__(self, clip: ClipConfig, model: ModelConfig, outputs: dict[str, int]):
        super().__init__()
        size = model.dimensions
        self.embed = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(size.decoder_width), std=0.02))
        self.pos_embed = PositionTable(clip.temporal_patches, clip.grid_size, size.decoder_width, model.pos_embed)
        self.blocks = BlockStack(size.decoder_width, model.decoder_depth, size.decoder_heads, model)
        self.norm = nn.LayerNorm(size.decoder_width, eps=NORM_EPS)
        self.heads = nn.ModuleDict({name: nn.Linear(size.decoder_width, values) for name, values in outputs.items()})
        init_linear(self)
        if model.decoder_init == "local":
            attentions = [part for part in self.blocks.modules() if isinstance(part, Attention)]
            linear = [part for part in self.heads.values() if isinstance(part, nn.Linear)]
            attend_locally_(attentions, self.embed, self.mask_token, linear, self.pos_embed.table, clip)

    def forward(self, encoded: Tensor, visible: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Predict the targets of the query cubes, int64 (B, Q), from the encoded visible cubes, int64 (B, V).

        ``encoded`` is (B, V, encoder width). The result is (B, Q, values) for each head, in the order of ``query``.
        """
        visible_tokens = self.embed(encoded) + self.pos_embed(visible)
        query_tokens = self.mask_token + self.pos_embed(query)
        tokens = torch.cat([visible_tokens, query_tokens], dim=1)  # (B, V + Q, decoder width)
        decoded = self.norm(self.blocks(tokens, num_queries=query.shape[1]))  # (B, Q, decoder width)
        return {name: head(decoded) for name, head in self.heads.items()}


def init_linear(module: nn.Module) -> None:
    """Initialise every Linear in ``module``: Xavier-uniform weights (q, k and v as one matrix), zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

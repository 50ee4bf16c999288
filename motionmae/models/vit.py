"""Plain ViT encoder and decoders: timm's blocks, joint space-time attention, no class token (paper section 4)."""

from functools import partial
from typing import Any, cast

import torch
from timm.models.beit import Attention, Block
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from motionmae.config import ClipConfig, ModelConfig
from motionmae.models.attention import attend
from motionmae.models.cubes import all_cubes, gather_cubes
from motionmae.models.local_attention import attend_locally_
from motionmae.models.pos_embed import PositionTable
from motionmae.models.whitening import whiten_

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue in [0, 1]. The encoder subtracts it."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue in [0, 1]. The encoder divides by it."""
NORM_EPS = 1e-6


class JointAttention(Attention):
    """timm's attention. With ``num_queries``, only the last ``num_queries`` tokens are queries."""

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:  # type: ignore[override]
        """Attend to all K tokens: (B, K, width) -> (B, num_queries, width); by default num_queries is K."""
        width, split = x.shape[2], (self.num_heads, -1)
        q_weight, kv_weight = self.qkv.weight.split([width, 2 * width])
        kv_bias = functional.pad(self.v_bias, (width, 0))  # k has no bias
        if num_queries is None:
            bias = torch.cat([self.q_bias, kv_bias])
            q, k, v = functional.linear(x, self.qkv.weight, bias).unflatten(2, (3, *split)).permute(2, 0, 3, 1, 4)
        else:
            q = functional.linear(x[:, -num_queries:], q_weight, self.q_bias).unflatten(2, split).transpose(1, 2)
            k, v = functional.linear(x, kv_weight, kv_bias).unflatten(2, (2, *split)).permute(2, 0, 3, 1, 4)
        # q: (B, heads, num_queries, width / heads); k and v: (B, heads, K, width / heads)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


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
    """

    def __init__(self, width: int, depth: int, heads: int, model: ModelConfig, drop_path: float = 0.0):
        """Make ``depth`` blocks; the drop-path rate grows linearly from 0 to ``drop_path``."""
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=NORM_EPS))  # cast to the type that timm declares
        super().__init__(JointBlock(width, heads, qkv_bias=True, norm_layer=norm, drop_path=rate) for rate in rates)
        self.recompute_every = {"none": 0, "full": 1, "every_n": model.checkpoint_every}[model.activation_checkpointing]
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


class Encoder(nn.Module):
    """ViT encoder. It maps the uint8 pixels of the visible cubes (tubelets) to one vector per cube."""

    def __init__(self, clip: ClipConfig, model: ModelConfig, *, drop_path: float = 0.0, final_norm: bool = True):
        """Make an encoder. Fine-tuning sets ``drop_path`` and omits the final norm."""
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
    """ViT decoder with one linear head per target."""

    def __init__(self, clip: ClipConfig, model: ModelConfig, outputs: dict[str, int]):
        """Make a decoder. ``outputs`` maps the name of each head to the number of values per cube."""
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

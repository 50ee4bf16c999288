"""Position embeddings of encoder and decoders: one vector per cube of the clip."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class PositionTable(nn.Module):
    """Table of position embeddings (N, width), looked up by cube number.

    A fixed table is a buffer that checkpoints omit, because it can be recomputed. A learnable table (paper section 3)
    is a parameter, initialised from a truncated normal distribution of standard deviation 0.02.
    """

    def __init__(self, temporal_patches: int, grid_size: int, width: int, kind: str):
        """Make a table for ``temporal_patches * grid_size**2`` cubes; ``kind`` is a value of ``model.pos_embed``."""
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

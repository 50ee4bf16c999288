"""Position tables: what tells a token where its cube was."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class PositionTable(nn.Module):
    """One vector a cube of the clip, looked up by cube index.

    Fixed tables are buffers that no checkpoint stores: they follow from their shape. Learnable ones (paper section 3)
    are parameters and start from a truncated normal of 0.02.
    """

    def __init__(self, slots: int, side: int, width: int, kind: str):
        """Make a table for ``slots`` x ``side`` x ``side`` cubes; ``kind`` is a value of ``model.pos_embed``."""
        super().__init__()
        self.table: Tensor
        cubes = slots * side**2
        if kind == "learnable":
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(cubes, width), std=0.02))
        else:
            fixed = sinusoidal_table(cubes, width) if kind == "sinusoidal" else separate_table(slots, side, width)
            self.register_buffer("table", fixed, persistent=False)

    def forward(self, cubes: Tensor | None = None) -> Tensor:
        """Return the vectors of ``cubes``: int64 (B, K) -> (B, K, width); without an index, the table (N, width)."""
        # embedding is a row copy forward and a sum of rows backward; plain indexing takes ten times as long on a CPU
        return self.table if cubes is None else functional.embedding(cubes, self.table)


def sinusoidal_table(cubes: int, width: int) -> Tensor:
    """Return VideoMAE's flat table (cubes, width), float32: the cube's number is its only coordinate.

    Channels 2i and 2i+1 hold the sine and cosine of ``number / 10000 ** (2i / width)``.
    """
    channels = torch.arange(width, dtype=torch.float64)
    periods = 10000 ** (2 * (channels // 2) / width)
    angles = torch.arange(cubes, dtype=torch.float64)[:, None] / periods  # (cubes, width)
    return torch.where(channels.remainder(2) == 0, angles.sin(), angles.cos()).float()


def separate_table(slots: int, side: int, width: int) -> Tensor:
    """Return V-JEPA's table (slots * side * side, width), float32: slot, row and column have channels of their own.

    Each has a third of the channels, rounded up to an even number, in this order; what is too much at the end is cut.
    Half of a third holds the sines and half the cosines of ``number / 10000 ** (i / half)``.
    """
    half = math.ceil(width / 6)
    periods = 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float64) for count in (slots, side, side)), indexing="ij")
    angles = [axis.reshape(-1, 1) / periods for axis in axes]  # (cubes, half) each
    return torch.cat([wave for axis in angles for wave in (axis.sin(), axis.cos())], 1)[:, :width].float()

"""Choose the masked cubes (tubelets) of a clip. A mask is a pure function of the clip's seed.

No random state is kept. Each position gets a key, the SplitMix64 hash (Steele, Lea and Flood 2014) of (seed, position)
in 64-bit arithmetic, which overflows in the same way on every device. The positions with the smallest keys are masked.
A mask therefore does not depend on the device, the rank, the batch, or the masks drawn before.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from motionmae.config import Config
from motionmae.config.method import masked_count


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_STEP = _signed(0x9E3779B97F4A7C15)
_STEP_INVERSE = _signed(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


class Mask(NamedTuple):
    """Numbers of visible and masked cubes, ascending in each row. All clips of a run have the same counts."""

    visible: Tensor  # int64 (B, V): cubes that the encoder sees
    masked: Tensor  # int64 (B, M): cubes that the decoder heads predict


def masked_cubes(kind: str, ratio: float, temporal_patches: int, spatial_patches: int) -> int:
    """Return the number of masked cubes per clip. The arguments are those of :func:`draw_masks`."""
    if kind == "time":
        return masked_count(kind, ratio, temporal_patches) * spatial_patches
    if kind == "global":
        return masked_count(kind, ratio, temporal_patches * spatial_patches)
    return temporal_patches * masked_count(kind, ratio, spatial_patches)


@dataclass(frozen=True)
class Cubes:
    """Counts of cubes (tokens) of one clip in a pre-training step."""

    visible: int  # tokens of the encoder, and keys and values of the decoders
    queries: int  # cubes predicted by each head

    @property
    def decoder(self) -> int:
        """Tokens of a decoder."""
        return self.visible + self.queries


def step_cubes(config: Config) -> Cubes:
    """Count the cubes that ``config.mask`` leaves visible and the cubes that each head predicts."""
    clip, mask = config.clip, config.mask
    masked = masked_cubes(mask.kind, mask.ratio, clip.temporal_patches, clip.spatial_patches)
    queries = clip.cubes - int(mask.decoder_ratio * clip.cubes) if mask.decoder_ratio else masked
    return Cubes(clip.cubes - masked, queries)


def draw_masks(seeds: Tensor, *, kind: str, ratio: float, temporal_patches: int, spatial_patches: int) -> Mask:
    """Draw one mask per seed, on the device of the seeds.

    Args:
        seeds: int64 (B,).
        kind: ``random`` masks ``int(ratio * spatial_patches)`` cubes of every time step, drawn anew for each step;
            ``tube`` masks the same positions in all time steps (VideoMAE; the paper's space-only); ``time`` masks all
            cubes of a time step; ``global`` leaves ``int((1 - ratio) * N)`` of all N cubes of the clip (MAE-ST).
    """
    batch, device = seeds.shape[0], seeds.device
    cubes = torch.arange(temporal_patches * spatial_patches, device=device).view(temporal_patches, spatial_patches)
    if kind == "time":
        chosen = _choose(seeds, temporal_patches, masked_count(kind, ratio, temporal_patches))
        return Mask(*(cubes[part].flatten(1) for part in chosen))
    if kind == "global":
        return _choose(seeds, cubes.numel(), masked_count(kind, ratio, cubes.numel()))
    if kind == "tube":
        chosen = _choose(seeds, spatial_patches, masked_count(kind, ratio, spatial_patches))
        return Mask(*((part[:, None] + cubes[:, :1]).flatten(1) for part in chosen))
    assert kind == "random", kind
    keys = _hash(seeds, cubes.numel()).view(batch * temporal_patches, spatial_patches)
    chosen = _split(keys, masked_count(kind, ratio, spatial_patches))
    return Mask(*((part.view(batch, temporal_patches, -1) + cubes[:, :1]).flatten(1) for part in chosen))


def running_cells(seeds: Tensor, *, ratio: float, temporal_patches: int, grid_size: int) -> Tensor:
    """Draw the cubes that decoders predict in training if they skip a fraction ``ratio`` (VideoMAEv2's running cells).

    A running cell is 2 x 2 cubes of a time step; ``grid_size`` must be even. ``4 * ratio`` cubes of every cell,
    consecutive in reading order, are skipped, where ``ratio`` is 0.25, 0.5 or 0.75. Each time step shifts the skipped
    cubes by one position. The clip's seed determines the first position.

    Returns:
        int64 (B, N * (1 - ratio)), the predicted ones of N cubes, ascending in each row and including visible cubes.
    """
    count = temporal_patches * grid_size**2
    cubes = torch.arange(count, device=seeds.device)
    time, row, column = cubes // grid_size**2, cubes // grid_size % grid_size, cubes % grid_size
    position = row % 2 * 2 + column % 2
    starts = torch.arange(4, device=seeds.device)
    rebuilt = (position + time + 1 + starts[:, None]) % 4 >= int(4 * ratio)
    maps = torch.where(rebuilt, cubes, count).sort(dim=1).values[:, : count - int(ratio * count)]
    return maps[_shift_right(_mix(_mix(seeds + _STEP)), 62)]  # index 0 to 3, from a key that no mask uses


def _choose(seeds: Tensor, count: int, masked: int) -> Mask:
    return _split(_hash(seeds, count), masked)


def _split(keys: Tensor, masked: int) -> Mask:
    """Mask the ``masked`` positions with the smallest keys in each row: int64 (R, count) -> Mask of (R, ...)."""
    count = keys.shape[1]
    low = (1 << (count - 1).bit_length()) - 1
    # The low bits hold the position. Keys are therefore unique, and sorting gives the same order on every device.
    order = ((keys & ~low) | torch.arange(count, device=keys.device)).sort(dim=1).values & low
    return Mask(visible=order[:, masked:].sort(dim=1).values, masked=order[:, :masked].sort(dim=1).values)


def _hash(seeds: Tensor, count: int) -> Tensor:
    """Hash each seed with the counters 0 to ``count - 1``: int64 (B,) -> (B, count)."""
    counters = torch.arange(1, count + 1, device=seeds.device)
    # The seed is hashed first, because neighbouring seeds would otherwise give shifted copies of one sequence.
    start = _mix(seeds + _STEP) * _STEP_INVERSE
    # This is mixed + counters * _STEP with _STEP factored out. torch.compile would turn counters * _STEP into a product
    # of signed C integers, whose overflow is undefined; gcc's code for this product writes out of bounds.
    return _mix((start[:, None] + counters) * _STEP)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _FIRST
    bits = (bits ^ _shift_right(bits, 27)) * _SECOND
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros (logical shift); torch's own shift of a signed integer copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)

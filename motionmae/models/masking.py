"""Which cubes of a clip are hidden: a pure function of the clip's seed, drawn where the seed lies.

Nothing here holds a random state. Each place gets a key by integer hashing (SplitMix64: Steele, Lea and Flood 2014) of
(seed, place), in 64-bit arithmetic that wraps alike on every device; the places with the smallest keys are hidden.
So a mask depends on its own seed alone: not on the device, the rank, the batch it is drawn in, or what came before.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_STEP = _signed(0x9E3779B97F4A7C15)
_STEP_INVERSE = _signed(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


class Mask(NamedTuple):
    """Cube indices, each row ascending; every clip of a run has the same counts, so that shapes are static."""

    visible: Tensor
    """int64 (B, V): cubes the encoder sees."""
    masked: Tensor
    """int64 (B, M): cubes to be rebuilt."""


def masked_cubes(kind: str, ratio: float, slots: int, places: int) -> int:
    """Return how many of the ``slots * places`` cubes are hidden: ``int(ratio * n)`` of each ``n`` drawn from."""
    if kind == "time":
        return int(ratio * slots) * places
    if kind == "global":
        return int(ratio * slots * places)
    return slots * int(ratio * places)


def draw_masks(seeds: Tensor, *, kind: str, ratio: float, slots: int, places: int) -> Mask:
    """Draw one mask for each seed, on the seeds' device.

    Args:
        seeds: int64 (B,).
        kind: ``random`` hides ``int(ratio * places)`` places of every slot, drawn anew for each; ``tube`` the same
            places in all slots (VideoMAE; the paper's space-only); ``time`` whole slots; ``global`` any cubes (MAE-ST).
        ratio: share that is hidden.
        slots: cubes along time.
        places: cubes of a slot.
    """
    batch, device = seeds.shape[0], seeds.device
    cubes = torch.arange(slots * places, device=device).view(slots, places)
    if kind == "time":
        chosen = _choose(seeds, slots, int(ratio * slots))
        return Mask(*(cubes[part].flatten(1) for part in chosen))
    if kind == "global":
        return _choose(seeds, slots * places, int(ratio * slots * places))
    if kind == "tube":
        chosen = _choose(seeds, places, int(ratio * places))
        return Mask(*((part[:, None] + cubes[:, :1]).flatten(1) for part in chosen))
    assert kind == "random", kind
    keys = _hash(seeds, slots * places).view(batch * slots, places)
    chosen = _split(keys, int(ratio * places))
    return Mask(*((part.view(batch, slots, -1) + cubes[:, :1]).flatten(1) for part in chosen))


def running_cells(seeds: Tensor, *, ratio: float, slots: int, side: int) -> Tensor:
    """Draw which cubes decoders rebuild in training where they leave ``ratio`` out (VideoMAEv2's running cells).

    Of every cell of 2 x 2 places ``4 * ratio`` neighbours in its reading order are left out; the next slot leaves out
    those one further on. A clip's seed draws where the first slot begins, all of its cells alike.

    Args:
        seeds: int64 (B,).
        ratio: 0.25, 0.5 or 0.75.
        slots: cubes along time.
        side: cubes along height and width, an even number.

    Returns:
        int64 (B, slots * side * side * (1 - ratio)), each row ascending. Some of them the encoder has seen.
    """
    cubes = torch.arange(slots * side * side, device=seeds.device)
    slot, row, column = cubes // (side * side), cubes // side % side, cubes % side
    place = row % 2 * 2 + column % 2
    starts = torch.arange(4, device=seeds.device)
    kept = (place + slot + 1 + starts[:, None]) % 4 >= int(4 * ratio)
    count = len(cubes) - int(ratio * len(cubes))
    maps = torch.where(kept, cubes, len(cubes)).sort(dim=1).values[:, :count]
    return maps[_shift_right(_mix(_mix(seeds + _STEP)), 62)]  # 0 to 3, by a key that no mask is drawn by


def _choose(seeds: Tensor, count: int, hidden: int) -> Mask:
    return _split(_hash(seeds, count), hidden)


def _split(keys: Tensor, hidden: int) -> Mask:
    """Hide the ``hidden`` positions of each row that have the smallest keys: int64 (R, count) -> Mask of (R, ...)."""
    count = keys.shape[1]
    low = (1 << (count - 1).bit_length()) - 1
    # the position in the low bits makes keys unique, so that no device's way of sorting equals can show
    order = ((keys & ~low) | torch.arange(count, device=keys.device)).sort(dim=1).values & low
    return Mask(visible=order[:, hidden:].sort(dim=1).values, masked=order[:, :hidden].sort(dim=1).values)


def _hash(seeds: Tensor, count: int) -> Tensor:
    """Return a key for each (seed, counter): int64 (B,) -> (B, count)."""
    counters = torch.arange(1, count + 1, device=seeds.device)
    # the seed is mixed by itself first: neighbouring seeds must not give shifted copies of one sequence
    start = _mix(seeds + _STEP) * _STEP_INVERSE
    # mixed + counters * _STEP, with the factor taken out: torch's compiler turns a product of counters into one of C's
    # signed integers, whose overflow is undefined, and what gcc makes of that writes beyond the keys
    return _mix((start[:, None] + counters) * _STEP)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _FIRST
    bits = (bits ^ _shift_right(bits, 27)) * _SECOND
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Shift in zeros from the left; torch's shift of a signed integer copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)

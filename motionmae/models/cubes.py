"""Cutting clips into cubes and putting them back.

Pixels stay bytes until a cube is known to be needed, and every copy here is a copy of whole rows: a clip is first cut
into its frames' patches (one pass), then cubes are picked out of those as runs of ``cube_size**2 * 3`` bytes.
A flattened cube is laid out (p0 p1 p2 c): frame, line, column, channel. Cubes are numbered slot by slot, then row by
row: ``slot * side * side + row * side + column``.
"""

import torch
from torch import Tensor


def cut_patches(clips: Tensor, size: int) -> Tensor:
    """Cut every frame into patches: (B, T, H, W, C) -> (B, T, P, size * size * C), P = (H / size) * (W / size)."""
    batch, frames, height, width, channels = clips.shape
    rows = clips.reshape(batch, frames, height // size, size, width // size, size * channels)
    return rows.transpose(3, 4).reshape(batch, frames, -1, size * size * channels)


def gather_patches(patches: Tensor, frames: Tensor, places: Tensor) -> Tensor:
    """Pick patches by frame and place.

    Args:
        patches: (B, T, P, R), contiguous.
        frames: int64 (B, K, F), the F frames of each of K cubes.
        places: int64 (B, K), where in the frame.

    Returns:
        (B, K, F * R), a new tensor.
    """
    batch, total_frames, total_places, length = patches.shape
    first = torch.arange(batch, device=patches.device).view(batch, 1, 1) * total_frames
    index = (first + frames) * total_places + places[..., None]  # (B, K, F): the row in (B * T * P, R)
    return patches.view(-1, length).index_select(0, index.flatten()).view(batch, places.shape[1], -1)


def gather_cubes(patches: Tensor, cubes: Tensor, cube_frames: int) -> Tensor:
    """Pick cubes by number: patches (B, T, P, R) and int64 (B, K) -> (B, K, cube_frames * R)."""
    return gather_patches(patches, frames_of(cubes, patches.shape[2], cube_frames), cubes % patches.shape[2])


def frames_of(cubes: Tensor, places: int, cube_frames: int) -> Tensor:
    """Return the frames that each cube spans: int64 (B, K) -> (B, K, cube_frames)."""
    return (cubes // places * cube_frames)[..., None] + torch.arange(cube_frames, device=cubes.device)


def all_cubes(patches: Tensor, cube_frames: int) -> Tensor:
    """Return every cube in order: patches (B, T, P, R) -> (B, T / cube_frames * P, cube_frames * R)."""
    batch, frames, places, length = patches.shape
    slots = patches.view(batch, frames // cube_frames, cube_frames, places, length)
    return slots.transpose(2, 3).reshape(batch, -1, cube_frames * length)


def paste_cubes(cubes: Tensor, cube_frames: int, size: int, side: int) -> Tensor:
    """Put all cubes back in place: (B, N, cube_frames * size * size * C) -> clips (B, T, H, W, C)."""
    batch = cubes.shape[0]
    parts = cubes.view(batch, -1, side, side, cube_frames, size, size, cubes.shape[2] // (cube_frames * size * size))
    slots, channels = parts.shape[1], parts.shape[-1]
    clips = parts.permute(0, 1, 4, 2, 5, 3, 6, 7)  # (B, slot, p0, row, p1, column, p2, C)
    return clips.reshape(batch, slots * cube_frames, side * size, side * size, channels)

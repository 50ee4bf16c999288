"""Cut clips into cubes and put cubes back together.

A cube is a space-time patch of ``cube_frames`` x ``cube_size`` x ``cube_size`` pixels. "Cube" is the paper's word;
VideoMAE, ViViT and Hugging Face call a cube a tubelet. One cube is one token. Cubes are numbered time step by time
step, then row by row: ``t * grid_size**2 + row * grid_size + column``. The values of a flattened cube are ordered
(p0 p1 p2 c): frame, pixel row, pixel column, channel.

Pixels stay uint8 until a cube is needed. A clip is first cut into 2D patches, in one pass. Cubes are then gathered from
these patches, which copies contiguous runs of ``cube_size**2 * 3`` bytes.

Shapes: B clips, T frames, P patches per frame, R values per patch, N cubes per clip, K chosen cubes.
"""

import torch
from torch import Tensor


def cut_patches(clips: Tensor, size: int) -> Tensor:
    """Cut every frame into patches: (B, T, H, W, C) -> (B, T, P, size * size * C), P = (H / size) * (W / size)."""
    batch, frames, height, width, channels = clips.shape
    rows = clips.reshape(batch, frames, height // size, size, width // size, size * channels)
    return rows.transpose(3, 4).reshape(batch, frames, -1, size * size * channels)


def gather_patches(patches: Tensor, frames: Tensor, positions: Tensor) -> Tensor:
    """Gather K cubes of F patches each: contiguous patches (B, T, P, R) -> (B, K, F * R).

    ``frames``, int64 (B, K, F), are the frames of each cube. ``positions``, int64 (B, K), is the patch position in
    these frames, less than P.
    """
    batch, total_frames, spatial_patches, length = patches.shape
    first = torch.arange(batch, device=patches.device).view(batch, 1, 1) * total_frames
    index = (first + frames) * spatial_patches + positions[..., None]  # (B, K, F): row index in (B * T * P, R)
    return patches.view(-1, length).index_select(0, index.flatten()).view(batch, positions.shape[1], -1)


def gather_cubes(patches: Tensor, cubes: Tensor, cube_frames: int) -> Tensor:
    """Gather cubes by number: patches (B, T, P, R) and int64 (B, K) -> (B, K, cube_frames * R)."""
    return gather_patches(patches, frames_of(cubes, patches.shape[2], cube_frames), cubes % patches.shape[2])


def frames_of(cubes: Tensor, spatial_patches: int, cube_frames: int) -> Tensor:
    """Return the frame numbers of each cube: int64 (B, K) -> (B, K, cube_frames)."""
    return (cubes // spatial_patches * cube_frames)[..., None] + torch.arange(cube_frames, device=cubes.device)


def all_cubes(patches: Tensor, cube_frames: int) -> Tensor:
    """Return all cubes in order: patches (B, T, P, R) -> (B, T / cube_frames * P, cube_frames * R)."""
    batch, frames, spatial_patches, length = patches.shape
    cubes = patches.view(batch, frames // cube_frames, cube_frames, spatial_patches, length)
    return cubes.transpose(2, 3).reshape(batch, -1, cube_frames * length)


def paste_cubes(cubes: Tensor, cube_frames: int, size: int, grid_size: int) -> Tensor:
    """Undo :func:`all_cubes` and :func:`cut_patches`: (B, N, cube_frames * size**2 * C) -> (B, T, H, W, C)."""
    batch, side = len(cubes), grid_size * size
    parts = cubes.view(
        batch, -1, grid_size, grid_size, cube_frames, size, size, cubes.shape[2] // (cube_frames * size**2)
    )
    clips = parts.permute(0, 1, 4, 2, 5, 3, 6, 7)  # (B, t, p0, row, p1, column, p2, C)
    return clips.reshape(batch, -1, side, side, parts.shape[-1])

import torch

from motionmae.models.cubes import all_cubes, cut_patches, gather_cubes, paste_cubes
from tests.models.tiny import noise_clips, tiny

CONFIG = tiny(clip={"frames": 4, "size": 24, "cube_size": 4, "cube_frames": 2})


def cube_by_hand(clip: torch.Tensor, number: int) -> torch.Tensor:
    """Cut one cube out of (T, H, W, C), values in the order (p0 p1 p2 c)."""
    grid, size = CONFIG.clip.grid_size, CONFIG.clip.cube_size
    time, row, column = number // grid**2, number // grid % grid, number % grid
    return clip[2 * time : 2 * time + 2, row * size : (row + 1) * size, column * size : (column + 1) * size].reshape(-1)


def test_gathered_cubes_are_the_cubes_of_the_clip_in_the_order_asked_for():
    clips = noise_clips(CONFIG)
    numbers = torch.stack([torch.randperm(CONFIG.clip.cubes)[:17] for _ in clips])
    cubes = gather_cubes(cut_patches(clips, 4), numbers, 2)
    for clip, row, found in zip(clips, numbers, cubes, strict=True):
        for number, cube in zip(row.tolist(), found, strict=True):
            assert torch.equal(cube, cube_by_hand(clip, number))


def test_all_cubes_is_gathering_each_in_turn():
    patches = cut_patches(noise_clips(CONFIG), 4)
    every = torch.arange(CONFIG.clip.cubes).expand(len(patches), -1)
    assert torch.equal(all_cubes(patches, 2), gather_cubes(patches, every, 2))


def test_pasting_undoes_cutting():
    clips = noise_clips(CONFIG)
    assert torch.equal(paste_cubes(all_cubes(cut_patches(clips, 4), 2), 2, 4, CONFIG.clip.grid_size), clips)


def test_patches_of_a_view_are_those_of_its_copy():
    clips = noise_clips(CONFIG).flip(1).transpose(2, 3)
    assert torch.equal(cut_patches(clips, 4), cut_patches(clips.contiguous(), 4))


def test_flow_is_cut_like_pixels():
    flow = torch.randn(2, 4, 24, 24, 2)
    cubes = all_cubes(cut_patches(flow, 4), 2)
    assert cubes.shape == (2, CONFIG.clip.cubes, 2 * 4 * 4 * 2)
    assert torch.equal(cubes[1, 7], cube_by_hand(flow[1], 7))

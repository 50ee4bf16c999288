"""Masks: exact counts, shape in time, uniformity, and dependence on the seed only."""

import numpy as np
import pytest
import torch

from motionmae.models.masking import Cubes, draw_masks, masked_cubes, running_cells, step_cubes
from tests.models.tiny import tiny

KINDS = ["random", "tube", "time", "global"]
TIME, SPACE = 8, 196
BITS = (1 << 64) - 1


def draw(seeds: list[int], kind: str, ratio: float = 0.9, time: int = TIME, space: int = SPACE) -> torch.Tensor:
    """Return bool (B, temporal patches, spatial patches), True where masked."""
    mask = draw_masks(torch.tensor(seeds), kind=kind, ratio=ratio, temporal_patches=time, spatial_patches=space)
    masked = torch.zeros(len(seeds), time * space, dtype=torch.bool).scatter(1, mask.masked, True)
    return masked.view(-1, time, space)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.85, 0.9, 0.95])
def test_masked_and_visible_are_ascending_and_make_up_the_clip(kind: str, ratio: float):
    if kind == "time" and ratio == 0.95:
        ratio = 0.875  # 0.95 of 8 time steps is still 7
    mask = draw_masks(torch.arange(5), kind=kind, ratio=ratio, temporal_patches=TIME, spatial_patches=SPACE)
    for part in mask:
        assert part.dtype == torch.int64
        assert (part.diff(dim=1) > 0).all()
    assert torch.equal(torch.cat(mask, 1).sort(1).values, torch.arange(TIME * SPACE).expand(5, -1))
    assert mask.masked.shape[1] == masked_cubes(kind, ratio, TIME, SPACE)


def test_counts_of_the_paper():
    """90 % of 196 leaves 20 visible cubes per time step, 160 per clip; 75 % leaves 49; at 95 % the authors show 10."""
    for kind in ("random", "tube"):
        for ratio, visible in ((0.9, 20), (0.75, 49), (0.95, 10), (0.85, 30)):  # 0.85 of 196: 166.6, rounded down
            assert ((~draw([3, 4], kind, ratio)).sum(2) == visible).all()
    assert masked_cubes("random", 0.9, 8, 196) == 1408
    assert masked_cubes("global", 0.9, 8, 196) == 1568 - 156
    assert masked_cubes("time", 0.9, 8, 196) == 7 * 196


def test_cubes_of_a_step_worked_by_hand():
    """64 cubes, of which 48 are masked. Decoders that skip half of all cubes predict 32, visible ones among them."""
    assert step_cubes(tiny()) == Cubes(visible=16, queries=48)
    assert step_cubes(tiny(mask={"decoder_ratio": 0.5})) == Cubes(visible=16, queries=32)
    assert step_cubes(tiny(mask={"decoder_ratio": 0.75})).decoder == 16 + 16


@pytest.mark.parametrize(("ratio", "visible"), [(0.5, 784), (0.75, 392), (0.9, 156), (0.95, 78), (0.98, 31)])
def test_global_masks_show_as_many_cubes_as_mae_st(ratio: float, visible: int):
    """models_mae.py of facebookresearch/mae_st: ``len_keep = int(L * (1 - mask_ratio))``."""
    assert visible == int(TIME * SPACE * (1 - ratio))
    mask = draw_masks(torch.arange(2), kind="global", ratio=ratio, temporal_patches=TIME, spatial_patches=SPACE)
    assert (mask.visible.shape[1], mask.masked.shape[1]) == (visible, TIME * SPACE - visible)


def test_tube_masks_the_same_positions_in_every_time_step_and_random_does_not():
    tube, random = draw([7, 8, 9], "tube"), draw([7, 8, 9], "random")
    assert (tube == tube[:, :1]).all()
    assert (random != random[:, :1]).any(2)[:, 1:].all()


def test_time_masks_whole_time_steps():
    masked = draw([1, 2, 3], "time", 0.5)
    assert torch.equal(masked.all(2), masked.any(2))
    assert (masked.all(2).sum(1) == 4).all()


def test_global_counts_vary_between_time_steps():
    masked = draw(list(range(20)), "global")
    assert (masked.sum((1, 2)) == 1412).all()
    assert masked.sum(2).unique().numel() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_mask_depends_on_its_own_seed_alone(kind: str):
    seeds = [5, -1, 2**62, 5, 0]
    together = draw(seeds, kind, 0.75)
    torch.manual_seed(123)  # no global state may matter
    alone = torch.cat([draw([seed], kind, 0.75) for seed in reversed(seeds)]).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[4])


@pytest.mark.parametrize(
    ("kind", "time", "space"), [("tube", 1, 16), ("global", 2, 8), ("random", 1, 16), ("time", 16, 1)]
)
def test_positions_and_pairs_of_positions_are_masked_uniformly(kind: str, time: int, space: int):
    """4 of 16 are masked: each with chance 1/4, each pair with chance 4 * 3 / (16 * 15)."""
    count = 20_000
    masked = draw(list(range(count)), kind, 0.25, time, space).flatten(1).double()
    singles, pairs = masked.mean(0), masked.T @ masked / count
    assert (singles - 0.25).abs().max() < 5 * (0.25 * 0.75 / count) ** 0.5
    off_diagonal = pairs[~torch.eye(16, dtype=torch.bool)]
    assert (off_diagonal - 0.05).abs().max() < 5 * (0.05 * 0.95 / count) ** 0.5


def test_neighbouring_seeds_and_time_steps_share_no_more_than_chance():
    masked = draw(list(range(2_000)), "random", 0.25, 4, 64).double()  # 16 of 64: chance overlap 4
    seeds = (masked[1:] * masked[:-1]).sum(2).mean().item()
    steps = (masked[:, 1:] * masked[:, :-1]).sum(2).mean().item()
    shifted = (masked[1:, :, 1:] * masked[:-1, :, :-1]).sum(2).mean().item() * 64 / 63
    for overlap in (seeds, steps, shifted):
        assert overlap == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789])
def test_keys_equal_splitmix64_in_unbounded_integers(seed: int):
    """The arithmetic is fixed to the bit: every device and version draws the same masks."""
    keys = [(_mix(_mix(seed + GAMMA) + (position + 1) * GAMMA), position) for position in range(SPACE)]
    # compared as signed integers, with the position in the low byte
    signed = sorted((key - (1 << 64) if key >> 63 else key) & ~0xFF | position for key, position in keys)
    expected = sorted(key & 0xFF for key in signed[:176])
    mask = draw_masks(torch.tensor([seed]), kind="tube", ratio=0.9, temporal_patches=1, spatial_patches=SPACE)
    assert mask.masked[0].tolist() == expected


@pytest.mark.parametrize("skipped", [1, 2, 3])
@pytest.mark.parametrize(("time", "grid"), [(8, 14), (5, 6)])
def test_running_cells_are_videomaev2s(skipped: int, time: int, grid: int):
    """Four equally frequent maps. As in its generator, the cell is rolled by one per time step, then tiled."""
    cell = np.array([False] * skipped + [True] * (4 - skipped))
    expected = set()
    for start in range(4):
        units = [np.roll(cell, -(start + step + 1)).reshape(2, 2) for step in range(time)]
        rebuilt = np.stack([np.tile(unit, (grid // 2, grid // 2)) for unit in units])
        expected.add(tuple(rebuilt.reshape(-1).nonzero()[0].tolist()))
    drawn = running_cells(torch.arange(4_000), ratio=skipped / 4, temporal_patches=time, grid_size=grid)
    maps, often = drawn.unique(dim=0, return_counts=True)
    assert {tuple(row) for row in maps.tolist()} == expected
    assert len(expected) == 4
    assert (often - 1_000).abs().max() < 5 * (4_000 * 0.25 * 0.75) ** 0.5
    assert torch.equal(
        drawn[7:9], running_cells(torch.tensor([7, 8]), ratio=skipped / 4, temporal_patches=time, grid_size=grid)
    )


def test_running_cells_do_not_follow_the_mask():
    """With a key of the mask, some positions would be masked more often under one of the maps."""
    seeds = torch.arange(20_000)
    maps = running_cells(seeds, ratio=0.5, temporal_patches=1, grid_size=4).unique(dim=0, return_inverse=True)[1]
    masked = draw(seeds.tolist(), "tube", 0.5, 1, 16).flatten(1).double()
    for number in range(4):
        of_map = masked[maps == number]
        assert (of_map.mean(0) - 0.5).abs().max() < 5 * (0.25 / len(of_map)) ** 0.5


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tube", "random"])
def test_compiled_code_draws_the_same_masks(kind: str):
    """Compiled keys once overflowed as signed C integers and overwrote the memory of the process."""
    draw_compiled, seeds = torch.compile(draw_masks), torch.tensor([3, -(2**63)])
    for _ in range(20):  # overwritten memory shows within a few repetitions
        for part, expected in zip(
            draw_compiled(seeds, kind=kind, ratio=0.9, temporal_patches=TIME, spatial_patches=SPACE),
            draw_masks(seeds, kind=kind, ratio=0.9, temporal_patches=TIME, spatial_patches=SPACE),
            strict=True,
        ):
            assert torch.equal(part, expected)


GAMMA = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z &= BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
    return z ^ (z >> 31)

"""Masks: exact counts, the right shape in time, uniform, and a function of the seed alone."""

import numpy as np
import pytest
import torch

from motionmae.models.masking import draw_masks, masked_cubes, running_cells

KINDS = ["random", "tube", "time", "global"]
SLOTS, PLACES = 8, 196
BITS = (1 << 64) - 1


def draw(seeds: list[int], kind: str, ratio: float = 0.9, slots: int = SLOTS, places: int = PLACES) -> torch.Tensor:
    """Return bool (B, slots, places), True where masked."""
    mask = draw_masks(torch.tensor(seeds), kind=kind, ratio=ratio, slots=slots, places=places)
    hidden = torch.zeros(len(seeds), slots * places, dtype=torch.bool).scatter(1, mask.masked, True)
    return hidden.view(-1, slots, places)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9, 0.95])
def test_masked_and_visible_are_ascending_and_make_up_the_clip(kind: str, ratio: float):
    if kind == "time" and ratio == 0.95:
        ratio = 0.875  # 0.95 of 8 slots is still 7
    mask = draw_masks(torch.arange(5), kind=kind, ratio=ratio, slots=SLOTS, places=PLACES)
    for part in mask:
        assert part.dtype == torch.int64
        assert (part.diff(dim=1) > 0).all()
    assert torch.equal(torch.cat(mask, 1).sort(1).values, torch.arange(SLOTS * PLACES).expand(5, -1))
    assert mask.masked.shape[1] == masked_cubes(kind, ratio, SLOTS, PLACES)


def test_counts_of_the_paper():
    """90 % of 196 leaves 20 of every slot, 160 of the clip; 75 % leaves 49; the authors' picture shows 10 at 95 %."""
    for kind in ("random", "tube"):
        for ratio, visible in ((0.9, 20), (0.75, 49), (0.95, 10)):
            assert ((~draw([3, 4], kind, ratio)).sum(2) == visible).all()
    assert masked_cubes("random", 0.9, 8, 196) == 1408
    assert masked_cubes("global", 0.9, 8, 196) == 1411
    assert masked_cubes("time", 0.9, 8, 196) == 7 * 196


def test_tube_hides_the_same_places_in_every_slot_and_random_does_not():
    tube, random = draw([7, 8, 9], "tube"), draw([7, 8, 9], "random")
    assert (tube == tube[:, :1]).all()
    assert (random != random[:, :1]).any(2)[:, 1:].all()


def test_time_hides_whole_slots():
    hidden = draw([1, 2, 3], "time", 0.5)
    assert torch.equal(hidden.all(2), hidden.any(2))
    assert (hidden.all(2).sum(1) == 4).all()


def test_global_counts_vary_between_slots():
    hidden = draw(list(range(20)), "global")
    assert (hidden.sum((1, 2)) == 1411).all()
    assert hidden.sum(2).unique().numel() > 5


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
    ("kind", "slots", "places"), [("tube", 1, 16), ("global", 2, 8), ("random", 1, 16), ("time", 16, 1)]
)
def test_places_and_pairs_of_places_are_hidden_uniformly(kind: str, slots: int, places: int):
    """Of 16, 4 are hidden: each with chance 1/4, each pair with chance 4 * 3 / (16 * 15)."""
    count = 20_000
    hidden = draw(list(range(count)), kind, 0.25, slots, places).flatten(1).double()
    singles, pairs = hidden.mean(0), hidden.T @ hidden / count
    assert (singles - 0.25).abs().max() < 5 * (0.25 * 0.75 / count) ** 0.5
    off_diagonal = pairs[~torch.eye(16, dtype=torch.bool)]
    assert (off_diagonal - 0.05).abs().max() < 5 * (0.05 * 0.95 / count) ** 0.5


def test_neighbouring_seeds_and_slots_share_no_more_than_chance():
    hidden = draw(list(range(2_000)), "random", 0.25, 4, 64).double()  # 16 of 64: chance overlap 4
    seeds = (hidden[1:] * hidden[:-1]).sum(2).mean().item()
    slots = (hidden[:, 1:] * hidden[:, :-1]).sum(2).mean().item()
    shifted = (hidden[1:, :, 1:] * hidden[:-1, :, :-1]).sum(2).mean().item() * 64 / 63
    for overlap in (seeds, slots, shifted):
        assert overlap == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789])
def test_keys_equal_splitmix64_in_unbounded_integers(seed: int):
    """The arithmetic is fixed to the bit, so that another device, or another version, cannot draw other masks."""
    keys = [(_mix(_mix(seed + GAMMA) + (place + 1) * GAMMA), place) for place in range(PLACES)]
    # compared as signed integers, with the place in the low byte
    signed = sorted((key - (1 << 64) if key >> 63 else key) & ~0xFF | place for key, place in keys)
    expected = sorted(key & 0xFF for key in signed[:176])
    mask = draw_masks(torch.tensor([seed]), kind="tube", ratio=0.9, slots=1, places=PLACES)
    assert mask.masked[0].tolist() == expected


@pytest.mark.parametrize("left_out", [1, 2, 3])
@pytest.mark.parametrize(("slots", "side"), [(8, 14), (5, 6)])
def test_running_cells_are_videomaev2s(left_out: int, slots: int, side: int):
    """Four maps, the cell rolled by one from slot to slot and tiled, as its generator makes them; all equally often."""
    cell = np.array([False] * left_out + [True] * (4 - left_out))
    expected = set()
    for start in range(4):
        units = [np.roll(cell, -(start + slot + 1)).reshape(2, 2) for slot in range(slots)]
        kept = np.stack([np.tile(unit, (side // 2, side // 2)) for unit in units])
        expected.add(tuple(kept.reshape(-1).nonzero()[0].tolist()))
    drawn = running_cells(torch.arange(4_000), ratio=left_out / 4, slots=slots, side=side)
    maps, often = drawn.unique(dim=0, return_counts=True)
    assert {tuple(row) for row in maps.tolist()} == expected
    assert len(expected) == 4
    assert (often - 1_000).abs().max() < 5 * (4_000 * 0.25 * 0.75) ** 0.5
    assert torch.equal(drawn[7:9], running_cells(torch.tensor([7, 8]), ratio=left_out / 4, slots=slots, side=side))


def test_running_cells_do_not_follow_the_mask():
    """Were they drawn by a key of the mask's, a place would be hidden more often where one map is drawn."""
    seeds = torch.arange(20_000)
    maps = running_cells(seeds, ratio=0.5, slots=1, side=4).unique(dim=0, return_inverse=True)[1]
    hidden = draw(seeds.tolist(), "tube", 0.5, 1, 16).flatten(1).double()
    for number in range(4):
        of_map = hidden[maps == number]
        assert (of_map.mean(0) - 0.5).abs().max() < 5 * (0.25 / len(of_map)) ** 0.5


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tube", "random"])
def test_compiled_code_draws_the_same_masks(kind: str):
    """Compiled, the keys once overflowed as C's signed integers, and wrote over the process's memory."""
    draw_compiled, seeds = torch.compile(draw_masks), torch.tensor([3, -(2**63)])
    for _ in range(20):  # where memory is written over, it shows within a few
        for part, expected in zip(
            draw_compiled(seeds, kind=kind, ratio=0.9, slots=SLOTS, places=PLACES),
            draw_masks(seeds, kind=kind, ratio=0.9, slots=SLOTS, places=PLACES),
            strict=True,
        ):
            assert torch.equal(part, expected)


GAMMA = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z &= BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
    return z ^ (z >> 31)

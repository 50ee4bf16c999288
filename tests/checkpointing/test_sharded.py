"""Checkpoints across world sizes and ZeRO stages, on real ranks; a launch covers all stages."""

from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.checkpointing.load_weights import load_state
from motionmae.engine.precision import LossScale
from motionmae.errors import UserError
from motionmae.runs.checkpoint_store import CheckpointStore
from tests.training.engine_workers import fail_to_write, load_all, resume_loss_scale, save_all
from tests.training.launch import run_ranks

STAGES = [0, 1, 2, 3]
SaveResult = dict[int, tuple[list[float], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SaveResult]:
    """Save a checkpoint per stage after 3 steps; return the results of 3 more steps."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_ranks(2, save_all, folder, STAGES, 3, 3)[0]


def assert_continues(answers: list[Any], expected: SaveResult, bitwise: Any) -> None:
    for (before, zero), (losses, weights, updates) in answers[0].items():
        later, final = expected[before]
        difference = max(float((weights[name] - final[name]).abs().max()) for name in final)
        if bitwise(before, zero):
            assert losses == later, (before, zero)
            assert difference == 0, (before, zero)
        else:
            assert losses == pytest.approx(later, rel=1e-6), (before, zero)
            assert difference < 1e-6, (before, zero)
        assert updates == 6


def test_same_world_and_stage_continues_bitwise_any_other_stage_within_rounding(saved_by_two: tuple[Path, SaveResult]):
    folder, expected = saved_by_two
    answers = run_ranks(2, load_all, folder, STAGES, STAGES, 3, 3)
    assert len(answers[0]) == 16
    assert_continues(answers, expected, lambda before, zero: before == zero)


@pytest.mark.parametrize(
    ("world", "stages"), [(1, [1, 3]), (3, [1, 3]), pytest.param(3, STAGES, marks=pytest.mark.long)]
)
def test_another_world_size_continues_within_rounding(
    saved_by_two: tuple[Path, SaveResult], world: int, stages: list[int]
):
    folder, expected = saved_by_two
    answers = run_ranks(world, load_all, folder, stages, stages, 3, 3)
    assert len(answers[0]) == len(stages) ** 2
    assert_continues(answers, expected, lambda before, zero: False)


@pytest.mark.long
def test_three_ranks_hand_over_to_one_and_back(tmp_path: Path):
    expected = run_ranks(3, save_all, tmp_path, STAGES, 2, 2)[0]
    assert len(list((tmp_path / "3" / "step-00000002").glob("*.safetensors"))) == 6
    for world in (1, 3):
        answers = run_ranks(world, load_all, tmp_path, STAGES, [0, 3], 2, 2)
        for (before, _), (losses, _, updates) in answers[0].items():
            assert losses == pytest.approx(expected[before][0], rel=1e-6)
            assert updates == 4


def test_weights_load_without_an_engine(saved_by_two: tuple[Path, SaveResult]):
    folder, _ = saved_by_two
    loaded = [load_state(folder / str(zero) / "step-00000003").state for zero in STAGES]
    assert sorted(loaded[0]) == ["norm.bias", "norm.weight", "rise.bias", "rise.weight", "space.bias", "space.weight",
                                 "time.weight"]  # fmt: skip
    for other in loaded[1:]:
        assert all(torch.allclose(value, other[name], atol=1e-6) for name, value in loaded[0].items())


def test_weights_of_a_damaged_or_missing_checkpoint_are_refused(saved_by_two: tuple[Path, SaveResult], tmp_path: Path):
    with pytest.raises(UserError, match="holds no weights: give a run folder, a checkpoint"):
        load_state(tmp_path)
    source = saved_by_two[0] / "1" / "step-00000003"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "state.json").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is not a valid checkpoint \(state\.json: No such file"):
        load_state(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "state.json")
    victim = tmp_path / "model-00001-of-00002.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 128
    victim.write_bytes(content)
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors does not have the sha256"):
        load_state(tmp_path)


def test_the_loss_scale_of_fp16_is_restored(tmp_path: Path):
    for saved, restored, is_same in run_ranks(1, resume_loss_scale, tmp_path, [0, 1])[0]:
        assert restored == saved == LossScale(1024.0, good_steps=2)
        assert is_same


@pytest.mark.parametrize("world", [1, 2])
def test_a_rank_that_cannot_write_fails_the_save_on_all_and_leaves_the_store_unchanged(tmp_path: Path, world: int):
    for error, names in run_ranks(world, fail_to_write, tmp_path):
        assert f"rank {world - 1}: " in error
        assert "File too large" in error
        assert names == ["step-00000001"]
    assert CheckpointStore(tmp_path).complete()[0].defect() == ""

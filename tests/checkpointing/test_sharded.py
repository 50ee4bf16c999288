"""Files of a rank's share in this process, and checkpoints across world sizes and ZeRO stages on real ranks."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from motionmae.checkpointing import sharded
from motionmae.checkpointing.load_weights import load_state
from motionmae.checkpointing.sharded import PinnedStagingBuffer, _read_average, write_share, write_state, write_tensors
from motionmae.distributed.context import DistributedContext
from motionmae.engine.precision import LossScale
from motionmae.errors import UserError
from motionmae.runs.checkpoint_manifest import Checkpoint, FileEntry
from motionmae.runs.checkpoint_store import CheckpointStore
from tests.flushes import record
from tests.training.engine_workers import fail_to_write, load_all, resume_loss_scale, save_all
from tests.training.launch import run_ranks

WEIGHTS = "model-00000-of-00001.safetensors"
RANK = DistributedContext(rank=1, world=3, local_rank=1, device=torch.device("cpu"))
STAGES = [0, 1, 2, 3]
SaveResult = dict[int, tuple[list[float], dict[str, torch.Tensor]]]


def test_a_share_has_a_file_for_weights_moments_and_averages(tmp_path: Path):
    kinds = ("parameter", "exp_avg", "exp_avg_sq", "average")
    tensors = {name: {kind: torch.randn(2, 3) for kind in kinds} for name in ("a", "b")}
    del tensors["b"]["average"]
    entries = write_share(tensors, tmp_path, RANK)
    suffix = "00001-of-00003.safetensors"
    assert [entry.name for entry in entries] == [f"model-{suffix}", f"optimizer-{suffix}", f"average-{suffix}"]
    assert {entry.tensors for entry in entries} == {("a", "b")}
    files = [load_file(tmp_path / entry.name) for entry in entries]
    assert [sorted(file) for file in files] == [
        ["a", "b"], ["a.exp_avg", "a.exp_avg_sq", "b.exp_avg", "b.exp_avg_sq"], ["a"],
    ]  # fmt: skip
    assert torch.equal(files[0]["b"], tensors["b"]["parameter"])
    assert torch.equal(files[1]["a.exp_avg_sq"], tensors["a"]["exp_avg_sq"])
    assert torch.equal(files[2]["a"], tensors["a"]["average"])
    assert len(write_share({"a": dict.fromkeys(kinds[:3], torch.ones(1))}, tmp_path, RANK)) == 2


def test_a_file_longer_than_a_chunk_is_written_whole(tmp_path: Path):
    """The chunks have 8 MiB."""
    value = torch.arange(5 << 20, dtype=torch.float32)  # 20 MiB
    entry = write_tensors(tmp_path / "x.safetensors", {"x": value, "y": torch.ones(3)}, ())
    content = (tmp_path / "x.safetensors").read_bytes()
    assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], value)
    header = int.from_bytes(content[:8], "little")
    assert header % 8 == 0  # tensors begin at multiples of 8, as the library asks
    assert json.loads(content[8 : 8 + header])["y"] == {
        "dtype": "F32", "shape": [3], "data_offsets": [20 << 20, (20 << 20) + 12],
    }  # fmt: skip


def test_the_state_is_json_and_described(tmp_path: Path):
    entry = write_state(tmp_path / "state.json", {"trainer": {"step": 3}})
    content = (tmp_path / "state.json").read_bytes()
    assert json.loads(content) == {"trainer": {"step": 3}}
    assert entry == FileEntry("state.json", len(content), hashlib.sha256(content).hexdigest())


def test_without_an_average_the_weight_itself_is_read(tmp_path: Path):
    entries = [
        write_tensors(tmp_path / f"{kind}-0.safetensors", {"a": torch.full((2,), float(number))}, ("a",))
        for number, kind in enumerate(("model", "average"))
    ]
    whole, without = (Checkpoint(tmp_path, 1, tuple(entries[:count]), 1) for count in (2, 1))
    assert _read_average(whole, "model-0.safetensors", "a").tolist() == [1, 1]
    assert _read_average(without, "model-0.safetensors", "a").tolist() == [0, 0]


def test_a_checkpoint_of_another_model_is_refused_once(tmp_path: Path):
    entries = (FileEntry("model-0", 1, "0" * 64, ("a", "b", "c", "d", "e")), FileEntry("other-0", 1, "0" * 64, ("z",)))
    engine: Any = SimpleNamespace(parameters={"a": None, "x": None})
    for rank in (0, 1):
        with pytest.raises(UserError) as refused:
            sharded.restore(engine, DistributedContext(rank, 2, rank, torch.device("cpu")),
                            Checkpoint(tmp_path, 1, entries, 1))  # fmt: skip
        assert str(refused.value).startswith(
            f"{tmp_path} does not match the model, 5 parameters differ (for example b, c, d): resume with"
        )
        assert refused.value.already_reported is (rank == 1)


def test_a_block_is_filled_before_the_next_is_taken(monkeypatch: pytest.MonkeyPatch):
    """Copies begin at multiples of 64 bytes in blocks of 256; one that fits in an earlier rest goes there."""
    taken: list[int] = []
    allocate = PinnedStagingBuffer._allocate

    def note(self: PinnedStagingBuffer, size: int) -> torch.Tensor:
        taken.append(size)
        return allocate(self, size)

    monkeypatch.setattr(PinnedStagingBuffer, "_allocate", note)
    buffer = PinnedStagingBuffer(block_bytes=256)
    sizes = (100, 140, 60, 256, 257, 1, 64)  # aligned 128, 192, 64, 256, alone, 64, 64
    copies = [buffer.copy((str(size), "x"), torch.full((size,), size % 128, dtype=torch.uint8)) for size in sizes]
    assert taken == [256, 256, 256, 257]
    assert all(bool((copy == size % 128).all()) for copy, size in zip(copies, sizes, strict=True))
    starts = [copy.data_ptr() for copy in copies]
    assert starts[2] == starts[0] + 128  # in the rest of the first block
    assert starts[5] == starts[0] + 192
    assert starts[6] == starts[1] + 192


def test_tensors_are_flushed_before_the_checkpoint_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = CheckpointStore(tmp_path / "checkpoints")
    new = store.begin(10, 1)
    found = record(tmp_path, monkeypatch)
    entry = write_tensors(new / WEIGHTS, {"a": torch.zeros(3)}, ("a",))
    store.commit(new, 10, {}, [entry])
    commit = found.index(("rename", "checkpoints/step-00000010"))
    assert found.index(("fsync", f"checkpoints/{new.name}/{WEIGHTS}")) < commit
    assert found[-1] == ("fsync", "checkpoints")


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

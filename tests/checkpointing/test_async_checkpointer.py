"""Asynchronous checkpoints on real ranks. Only the write of a file is replaced: slow, failing, or hanging."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from monitoring.goodput import goodput_of
from motionmae.checkpointing.load_weights import load_state
from motionmae.checkpointing.sharded import PinnedStagingBuffer, write_tensors
from motionmae.config import Config, load_config
from motionmae.engine.sharded_state import KINDS
from motionmae.models.motionmae import MotionMAE
from motionmae.runs.checkpoint_store import CheckpointStore, describe
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import read_rows
from motionmae.runs.history import RunHistory
from motionmae.training.setup import run_training
from tests.training.launch import Ranks, run_ranks, wait_until
from tests.training.save_workers import (
    be_taken_over,
    fail_and_recover,
    pretrain_and_hang_in_a_save,
    pretrain_on_a_stuck_disk,
    pretrain_on_bad_samples,
    save_beside_training,
)
from tests.training.shards import STEPS, make_shards, tiny_run


def test_the_safetensors_library_reads_the_file(tmp_path: Path):
    tensors = {"a.weight": torch.randn(3, 5), "b": torch.tensor(2.5), "c.é": torch.randn(7)}
    entry = write_tensors(tmp_path / "x.safetensors", tensors, ("a", "b"))
    assert entry == describe(tmp_path / "x.safetensors", ("a", "b"))
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_the_staging_buffer_is_reused():
    buffer = PinnedStagingBuffer()
    first = buffer.copy(("w", "parameter"), torch.ones(4))
    assert buffer.copy(("w", "parameter"), torch.zeros(4)).data_ptr() == first.data_ptr()
    assert first.sum() == 0
    assert buffer.copy(("w", "exp_avg"), torch.ones(4)).data_ptr() != first.data_ptr()


@pytest.mark.parametrize(("name", "limit"), [("vitb_k400", 1.1), ("vith_k400", 1.15)])
def test_pinned_memory_is_hardly_rounded_up(name: str, limit: float, monkeypatch: pytest.MonkeyPatch):
    """Torch rounds each pinned tensor up to a power of two: one by one 1.63 x for ViT-B, and 1.37 x for ViT-H."""
    with torch.device("meta"):
        parameters = list(MotionMAE(load_config(name)).parameters())
        values = {(str(number), kind): value for number, value in enumerate(parameters) for kind in KINDS}
        sizes = [value.nbytes for value in values.values()]
        assert sum(1 << (size - 1).bit_length() for size in sizes) > 1.3 * sum(sizes)
        empty, taken = torch.empty, []

        def pin(size: int, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
            assert pin_memory
            taken.append(1 << (size - 1).bit_length())
            return empty(size, dtype=dtype)

        buffer = PinnedStagingBuffer(pinned=True)
        monkeypatch.setattr(torch, "empty", pin)
        for key, value in values.items():
            buffer.copy(key, value)
    assert sum(taken) < limit * sum(sizes)


def test_a_parameter_larger_than_a_block_is_copied_whole():
    buffer = PinnedStagingBuffer(block_bytes=256)
    values = [torch.randn(shape) for shape in ((5, 7), (100,), (), (3,), (64,))]
    copies = [buffer.copy((str(number), "parameter"), value) for number, value in enumerate(values)]
    assert all(torch.equal(copy, value) for copy, value in zip(copies, values, strict=True))


@pytest.mark.parametrize("world", [1, 2])
def test_training_goes_on_beside_a_slow_disk_and_saves_the_weights_of_its_step(tmp_path: Path, world: int):
    for answer in run_ranks(world, save_beside_training, tmp_path):
        at_save, at_end = answer["weights"]
        assert answer["started"] < 1.0 <= answer["first"].seconds
        assert answer["first"].blocking <= answer["started"]
        assert answer["early"] is None
        assert answer["nothing"] is None
        for step, expected in ((1, at_save), (4, at_end)):
            loaded = load_state(tmp_path / f"checkpoints/step-0000000{step}").state
            assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        assert not all(torch.equal(at_save[name], at_end[name]) for name in at_end)


@pytest.mark.parametrize("world", [1, 2])
def test_a_failed_write_is_removed_and_later_ones_work_and_keep_the_best(tmp_path: Path, world: int):
    for first, second, third, fourth, fifth in run_ranks(world, fail_and_recover, tmp_path):
        assert first == ("", ["step-00000001"])
        assert second[0].startswith(f"rank {world - 1}: [Errno 28] No space left on device")
        assert second[1] == ["step-00000001"]
        assert third == ("", ["step-00000001", "step-00000003"])
        assert fourth == ("", ["step-00000001", "step-00000003", "step-00000004"])
        assert fifth == ("", ["step-00000001", "step-00000004", "step-00000005"])


def test_a_write_in_progress_is_not_committed_after_another_lease(tmp_path: Path):
    for sentence, committed in run_ranks(2, be_taken_over, tmp_path):
        assert "attempt 2 of this run" in sentence
        assert committed == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny_run(shards, tmp_path_factory.mktemp("reference"))
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    return config


def store_of(config: Config) -> CheckpointStore:
    return CheckpointStore(RunFolder(config.run_folder).checkpoints)


def rows_of(config: Config, kind: str) -> list[dict]:
    return [row for row in read_rows(RunFolder(config.run_folder).events) if row["kind"] == kind]


def assert_same_end(config: Config, other: Config) -> None:
    expected, found = (load_state(store_of(c).complete()[-1].folder).state for c in (other, config))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def assert_goodput_adds_up(config: Config) -> None:
    """Every second has a category, and some work was lost."""
    goodput = goodput_of(RunHistory(RunFolder(config.run_folder).path))
    assert goodput.productive + sum(goodput.badput.values()) == pytest.approx(goodput.elapsed)
    assert goodput.productive > 0
    assert goodput.badput["lost_work"] > 0
    assert min(goodput.badput.values()) > -0.05


def test_killed_during_a_background_write(shards: Path, undisturbed: Config, tmp_path: Path):
    config = tiny_run(shards, tmp_path)
    ranks = Ranks(2, pretrain_on_a_stuck_disk, config)
    folder = RunFolder(config.run_folder)
    wait_until(lambda: [row for row in read_rows(folder.metrics) if row["step"] == 8], "step 8, two after the save")
    ranks.kill()
    assert [path.name for path in store_of(config).unfinished()] == [".unfinished-1-step-00000006"]
    assert [c.step for c in store_of(config).complete()] == [2, 4]
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    assert rows_of(config, "resume")[0]["step"] == 4
    assert store_of(config).unfinished() == []
    assert_same_end(config, undisturbed)
    assert_goodput_adds_up(config)


def test_stop_and_save_files_take_effect_once(shards: Path, undisturbed: Config, tmp_path: Path):
    config = tiny_run(shards, tmp_path, checkpoint={"every_steps": 1000}, optim={"epochs": 40})
    folder = RunFolder(config.run_folder)
    ranks = Ranks(2, run_training, config)
    wait_until(lambda: list(read_rows(folder.metrics)), "the first step")
    (folder.path / "save").touch()
    wait_until(lambda: rows_of(config, "checkpoint"), "a checkpoint")
    assert not (folder.path / "save").exists()
    (folder.path / "stop").touch()
    assert ranks.results() == [EndReason.STOPPED] * 2
    saves = [row["step"] for row in rows_of(config, "checkpoint")]
    assert len(saves) == 2
    assert rows_of(config, "stop")[0] == rows_of(config, "stop")[0] | {"reason": "stopped", "step": saves[1]}
    assert f"stopped by the file {folder.path / 'stop'} after step {saves[1]}; all steps are saved" in ranks.output()
    assert not (folder.path / "stop").exists()
    (folder.path / "stop").touch()  # before the run starts
    assert run_ranks(1, run_training, config) == [EndReason.STOPPED]
    assert store_of(config).complete()[-1].step == saves[1] + 1


def test_a_rollback_skips_the_samples_of_a_bad_window(shards: Path, tmp_path: Path):
    """After the rollback, the run equals a resume of the checkpoint that the rollback saved."""
    config = tiny_run(
        shards,
        tmp_path / "bad",
        optim={"epochs": 6},
        checkpoint={"every_steps": 2, "keep_every": 4},
        engine={"zero_stage": 2},
    )
    assert run_ranks(2, pretrain_on_bad_samples, config, 5, 15) == ["FINISHED"] * 2
    assert [row["data_step"] for row in rows_of(config, "nonfinite")] == list(range(6, 17))
    (back,) = rows_of(config, "rollback")
    assert (back["step"], back["from_step"], back["data_step"]) == (4, 16, 16)
    last = store_of(config).complete()[-1]
    assert (last.step, last.state()["trainer"]["data_step"], last.state()["trainer"]["skipped"]) == (18, 30, 11)
    kept = [(4, 16), (8, 20), (12, 24), (14, 26), (16, 28), (18, 30)]
    assert [(c.step, c.position) for c in store_of(config).complete()] == kept
    assert_goodput_adds_up(config)

    again = config.updated({"output_dir": str(tmp_path / "again")})
    shutil.copytree(store_of(config).folder / "step-00000004", store_of(again).folder / "step-00000004")
    assert run_ranks(2, run_training, again) == [EndReason.FINISHED] * 2
    assert_same_end(config, again)


def test_a_run_whose_losses_stay_non_finite_stops_with_a_report(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, optim={"epochs": 20}, checkpoint={"every_steps": 2})
    for sentence in run_ranks(2, pretrain_on_bad_samples, config, 5, 1000):
        assert "not finite, also after a rollback to an earlier checkpoint and other samples, in 11 of" in sentence
        assert "on rank 0, samples [" in sentence
    assert len(rows_of(config, "rollback")) == 1
    assert len(rows_of(config, "nonfinite")) == 22
    assert rows_of(config, "stop")[0]["reason"] == "user_error"


def test_a_disk_that_never_answers_is_a_hang(shards: Path, tmp_path: Path):
    """The write of step 6 hangs. The save of step 8 waits for it until the watchdog ends the rank."""
    config = tiny_run(shards, tmp_path, watchdog={"save_seconds": 8})
    ranks = Ranks(2, pretrain_on_a_stuck_disk, config)
    for process in ranks.processes:
        process.join(300)
        assert process.exitcode == 79, ranks.output()
    hang = rows_of(config, "hang")[0]
    assert hang["error"].startswith(("writing the checkpoint of step 6", "saving step 8"))
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    assert store_of(config).complete()[-1].step == STEPS


def test_a_rank_that_hangs_while_the_state_is_copied_has_the_limit_of_a_step(shards: Path, tmp_path: Path):
    """The long limit of a save is for the disk, which takes no part in the copy."""
    config = tiny_run(shards, tmp_path, watchdog={"step_seconds": 6})
    ranks = Ranks(2, pretrain_and_hang_in_a_save, config)
    for process in ranks.processes:
        process.join(300)
        assert process.exitcode == 79, ranks.output()
    assert rows_of(config, "hang")[0]["error"].startswith("copying the state of step 6 takes longer")

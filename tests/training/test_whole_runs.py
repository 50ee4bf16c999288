"""Whole runs of a real model on real shards: killed, preempted, resharded, damaged, on a full disk, non-finite."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from motionmae.checkpointing.load_weights import load_state
from motionmae.config import Config, load_config
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import drop_repeated, read_rows
from motionmae.training.setup import run_training
from tests.training.launch import Ranks, run_ranks, wait_until
from tests.training.run_workers import pretrain_with_small_files, run_all
from tests.training.shards import STEPS, make_shards, tiny_run

STAGES = [0, 1, 2, 3]
ROW = {
    "attempt", "step", "epoch", "loss", "loss_space", "loss_time", "lr", "grad_norm", "clips_per_second",
    "step_seconds", "step_seconds_max", "data_wait_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds",
    "checkpoint_seconds", "memory_copy_seconds", "memory_copy_step", "other_seconds", "straggler_score", "slowest_rank",
    "time",
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Config]:
    """Finished runs by (world, stage)."""
    runs: dict[tuple[int, int], Config] = {}
    for world in (1, 2):
        configs = [
            tiny_run(shards, tmp_path_factory.mktemp("reference"), engine={"zero_stage": zero}) for zero in STAGES
        ]
        assert run_ranks(world, run_all, configs)[0] == ["FINISHED"] * 4
        runs |= {(world, config.engine.zero_stage): config for config in configs}
    return runs


def folder_of(config: Config) -> RunFolder:
    return RunFolder(config.run_folder)


def losses(config: Config) -> list[tuple[int, float, float, float]]:
    return [
        (r["step"], r["loss"], r["loss_space"], r["loss_time"])
        for r in drop_repeated(read_rows(folder_of(config).metrics))
    ]


def events(config: Config, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder_of(config).events) if row["kind"] == kind]


def rows_written(config: Config) -> int:
    return len(list(read_rows(folder_of(config).metrics)))


def saved_steps(config: Config) -> list[int]:
    return [checkpoint.step for checkpoint in CheckpointStore(folder_of(config).checkpoints).complete()]


def final_weights(config: Config) -> dict[str, torch.Tensor]:
    return load_state(CheckpointStore(folder_of(config).checkpoints).complete()[-1].folder).state


def assert_same_run(config: Config, reference: Config) -> None:
    """Bitwise: every loss, every weight."""
    assert losses(config) == losses(reference)
    assert len(losses(config)) == STEPS
    expected = final_weights(reference)
    assert all(torch.equal(value, expected[name]) for name, value in final_weights(config).items())


def kill_after(config: Config, world: int, row: int) -> None:
    """Run until a step's row of metrics is written, then kill every rank."""
    ranks = Ranks(world, run_training, config)
    wait_until(lambda: rows_written(config) >= row, f"step {row}")
    ranks.kill()


def test_run_folder_rows_and_events_are_complete(undisturbed: dict[tuple[int, int], Config]):
    for (world, _), config in undisturbed.items():
        folder = folder_of(config)
        rows = list(read_rows(folder.metrics))
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert all(row.keys() >= ROW and None not in row.values() for row in rows)
        assert rows[3]["epoch"] == pytest.approx(4 / 3)
        assert rows[0]["lr"] == 0
        assert max(row["lr"] for row in rows) == pytest.approx(config.optim.peak_lr)
        assert [row["step"] for row in events(config, "checkpoint")] == [2, 4, 6, 8, 9]
        assert events(config, "start")[0]["world"] == world
        assert [row["kind"] for row in read_rows(folder.events)][-1] == "finish"
        assert saved_steps(config) == [6, 8, 9]
        assert load_config(str(folder.config)) == config


def test_ranks_and_stages_train_alike(undisturbed: dict[tuple[int, int], Config]):
    expected = [row[1:] for row in losses(undisturbed[1, 0])]
    for config in undisturbed.values():
        for row, values in zip(losses(config), expected, strict=True):
            assert row[1:] == pytest.approx(values, rel=2e-5)


def test_activation_checkpointing_changes_no_bit_at_stage_3(
    shards: Path, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    config = tiny_run(shards, tmp_path, engine={"zero_stage": 3}, model={"activation_checkpointing": "full"})
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    assert_same_run(config, undisturbed[2, 3])


@pytest.mark.parametrize("world", [1, 2])
def test_killed_and_started_again_equals_undisturbed(
    world: int, shards: Path, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    """Each stage is killed at another step: before the first checkpoint, at one, between two."""
    configs = [tiny_run(shards, tmp_path / str(zero), engine={"zero_stage": zero}) for zero in STAGES]
    for config, row in zip(configs, (1, 4, 5, 7), strict=True):
        kill_after(config, world, row)
    assert run_ranks(world, run_all, configs)[0] == ["FINISHED"] * 4
    for config in configs:
        assert_same_run(config, undisturbed[world, config.engine.zero_stage])
        assert len({row["attempt"] for row in read_rows(folder_of(config).metrics)}) == 2


@pytest.mark.long
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("zero", STAGES)
def test_killed_at_many_steps_equals_undisturbed(
    world: int, zero: int, shards: Path, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    """Every pair: each stage and each number of ranks with each step, and each stage with each number of ranks."""
    rows = (2, 6) if (world + zero) % 2 else (3, 8)
    configs = [tiny_run(shards, tmp_path / str(row), engine={"zero_stage": zero}) for row in rows]
    for config, row in zip(configs, rows, strict=True):
        kill_after(config, world, row)
    assert run_ranks(world, run_all, configs)[0] == ["FINISHED"] * len(configs)
    for config in configs:
        assert_same_run(config, undisturbed[world, zero])


@pytest.mark.long
def test_killed_again_and_again_equals_undisturbed(
    shards: Path, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    """A kill two rows after a start hits the save and loses all progress; three rows after, the save is done."""
    config = tiny_run(shards, tmp_path, engine={"zero_stage": 2})
    for rows in (2, 3, 2, 3, 3):
        kill_after(config, 2, rows_written(config) + rows)
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    assert len({row["attempt"] for row in read_rows(folder_of(config).events)}) == 6
    assert_same_run(config, undisturbed[2, 2])


def test_a_lost_peer_ends_the_run_and_the_same_command_resumes_it(
    shards: Path, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    config = tiny_run(shards, tmp_path)
    ranks = Ranks(2, run_training, config)
    wait_until(lambda: rows_written(config) >= 3, "step 3")
    ranks.send(1, signal.SIGKILL)
    ranks.processes[0].join(60)
    assert ranks.processes[0].exitcode == 1
    ranks.kill()
    assert events(config, "stop")[0]["error"]
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    assert_same_run(config, undisturbed[2, 1])


@pytest.mark.parametrize(
    ("number", "rank", "reason"), [(signal.SIGUSR2, 1, EndReason.PREEMPTED), (signal.SIGTERM, 0, EndReason.TERMINATED)]
)
def test_a_signal_to_one_rank_saves_on_both_and_loses_no_step(
    number: signal.Signals,
    rank: int,
    reason: EndReason,
    shards: Path,
    undisturbed: dict[tuple[int, int], Config],
    tmp_path: Path,
):
    config = tiny_run(shards, tmp_path, checkpoint={"every_steps": 100})
    ranks = Ranks(2, run_training, config)
    wait_until(lambda: rows_written(config) >= 2, "step 2")
    ranks.send(rank, number)
    assert ranks.results() == [reason, reason]
    (stopped,) = saved_steps(config)
    assert 2 <= stopped < STEPS
    assert events(config, "preemption")[0]["step"] == stopped
    assert events(config, "stop")[0]["reason"] == reason
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    assert [row["step"] for row in read_rows(folder_of(config).metrics)] == list(range(1, STEPS + 1))
    assert_same_run(config, undisturbed[2, 1])


def test_a_run_moves_between_world_sizes_and_stages(
    shards: Path, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    source = tiny_run(shards, tmp_path / "2")
    kill_after(source, 2, 5)
    before = saved_steps(source)[-1]
    for world, zero in ((1, 3), (3, 2)):
        engine = source.engine.model_copy(update={"zero_stage": zero, "micro_batch_size": 2 if world == 3 else 3})
        config = copy_of(source, tmp_path / f"{world}-{zero}").updated({"engine": engine})
        assert run_ranks(world, run_training, config)[0] is EndReason.FINISHED
        assert events(config, "resume")[0]["step"] == before
        for row, expected in zip(losses(config), losses(undisturbed[2, 1]), strict=True):
            assert row == pytest.approx(expected, rel=2e-5)


def flip_byte(checkpoint: Path) -> None:
    path = checkpoint / "optimizer-00000-of-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "model-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_write(checkpoint: Path) -> None:
    """Imitate an interrupted save: a temporary name and no manifest."""
    copy = checkpoint.with_name(".unfinished-step-00000099")
    shutil.copytree(checkpoint, copy)
    (copy / "manifest.json").unlink()


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on one rank, killed after several checkpoints."""
    config = tiny_run(shards, tmp_path_factory.mktemp("killed"))
    kill_after(config, 1, 7)
    return config


def copy_of(config: Config, runs: Path) -> Config:
    shutil.copytree(config.output_dir, runs, dirs_exist_ok=True)
    return config.updated({"output_dir": str(runs)})


@pytest.mark.parametrize("harm", [flip_byte, truncate])
def test_a_damaged_checkpoint_is_logged_and_the_previous_one_loaded(
    harm: Any, killed: Config, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    config = copy_of(killed, tmp_path)
    before, newest = CheckpointStore(folder_of(config).checkpoints).complete()[-2:]
    harm(newest.folder)
    ranks = Ranks(1, run_training, config)
    assert ranks.results() == [EndReason.FINISHED]
    assert f"checkpoint {newest.folder.name} is damaged" in ranks.output()
    assert [row["path"] for row in events(config, "checkpoint_damaged")] == [newest.folder.name]
    assert events(config, "resume")[0]["step"] == before.step
    assert_same_run(config, undisturbed[1, 1])


def test_a_half_written_checkpoint_is_ignored_and_removed(
    killed: Config, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    config = copy_of(killed, tmp_path)
    newest = CheckpointStore(folder_of(config).checkpoints).complete()[-1]
    half_write(newest.folder)
    assert run_ranks(1, run_training, config) == [EndReason.FINISHED]
    assert events(config, "resume")[0]["step"] == newest.step
    assert not events(config, "checkpoint_damaged")
    assert not list(folder_of(config).checkpoints.glob(".unfinished*"))
    assert_same_run(config, undisturbed[1, 1])


def test_other_settings_and_other_data_are_refused_by_name_harmless_ones_taken(
    killed: Config, shards: Path, tmp_path: Path
):
    config = copy_of(killed, tmp_path / "runs")
    other_data = make_shards(tmp_path / "other", samples=10)
    moved_data = shutil.copytree(shards, tmp_path / "moved")
    attempts = [
        config.updated({"seed": 5}),
        config.updated({"optim.epochs": 4, "optim.base_lr": 0.5}),
        config.updated({"data.shards": str(other_data)}),
        config.updated(
            {
                "data.shards": str(moved_data),
                "data.threads": 2,
                "engine.micro_batch_size": 1,
                "engine.zero_stage": 0,
                "log.every_steps": 2,
            }
        ),
    ]
    before = folder_of(config).config.read_text()
    ranks = Ranks(1, run_all, attempts[:3])
    (ends,) = ranks.results()
    assert "seed=5 (was 0)" in ends[0]
    assert "optim.epochs=4 (was 3), optim.base_lr=0.5 (was 0.02)" in ends[1]
    assert "shards was" in ends[2]
    assert folder_of(config).config.read_text() == before
    assert run_ranks(1, run_all, attempts[3:]) == [["FINISHED"]]
    assert load_config(str(folder_of(config).config)) == attempts[3]


def test_a_complete_run_is_reported_and_stays_unchanged(undisturbed: dict[tuple[int, int], Config]):
    config = undisturbed[2, 3]
    rows = rows_written(config)
    ranks = Ranks(2, run_training, config)
    assert ranks.results() == [EndReason.FINISHED] * 2
    assert f"is complete: all of its {STEPS} steps are done" in ranks.output()
    assert rows_written(config) == rows


def test_a_rank_without_room_for_its_share_warns_and_only_the_last_save_is_fatal(
    shards: Path, undisturbed: dict[tuple[int, int], Config], tmp_path: Path
):
    config = tiny_run(shards, tmp_path)
    ranks = Ranks(2, pretrain_with_small_files, config, 100_000)  # shared buffers are files too, of 36,864 bytes
    for (end,) in ranks.results():
        assert f"the checkpoint of step {STEPS} cannot be written" in end
        assert "make room and run the same command again" in end
    assert [row["step"] for row in events(config, "checkpoint_failed")] == [2, 4, 6, 8, STEPS]
    assert "rank 1: " in events(config, "checkpoint_failed")[0]["error"]
    assert "training continues" in ranks.output()
    assert losses(config) == losses(undisturbed[2, 1])
    assert not any(folder_of(config).checkpoints.iterdir())
    assert run_ranks(2, run_all, [config])[0] == ["FINISHED"]
    assert_same_run(config, undisturbed[2, 1])


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system with room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1700k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can make a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_checkpoint_before_and_more_room_finishes_the_run(
    shards: Path, undisturbed: dict[tuple[int, int], Config], small_disk: Path
):
    config = tiny_run(shards, small_disk)
    (end,) = run_ranks(1, run_all, [config])[0]
    assert "No space left on device" in end
    assert saved_steps(config) == [2]
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run_ranks(1, run_all, [config]) == [["FINISHED"]]
    assert events(config, "resume")[0]["step"] == 2
    assert_same_run(config, undisturbed[1, 1])


def test_non_finite_weights_stop_the_run_with_a_report(shards: Path, tmp_path: Path):
    config = tiny_run(shards, tmp_path, optim={"base_lr": 1e30, "epochs": 6}, checkpoint={"every_steps": 100})
    ranks = Ranks(2, run_all, [config])
    for (end,) in ranks.results():
        assert "not finite in 11 of the last 1000 steps" in end
    skipped = events(config, "nonfinite")
    assert len(skipped) == 11
    assert {row["cause"] for row in skipped} <= {"loss", "gradient"}
    last = skipped[-1]
    assert last["ranks"] == [0, 1]
    assert sorted(last["samples"]) == sorted(set(last["samples"]))
    assert len(last["samples"]) == config.optim.global_batch_size
    rows = list(read_rows(folder_of(config).metrics))
    assert rows[-1]["skipped_steps"] == 10
    assert rows[-1]["loss"] is None
    assert f"step {last['step']} skipped" in ranks.output()


def test_an_unreadable_sample_is_logged_counted_and_saved(tmp_path: Path):
    shards = make_shards(tmp_path / "shards")
    shard = shards / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[4000:12000] = bytes(8000)
    shard.write_bytes(content)
    config = tiny_run(shards, tmp_path / "runs")
    assert run_ranks(2, run_training, config) == [EndReason.FINISHED] * 2
    logged = events(config, "corrupt_sample")
    samples = [sample for row in logged for sample in row["samples"]]
    assert len(samples) == len(set(samples)) >= 1  # each sample once, for any rank and any number of reads
    assert list(read_rows(folder_of(config).metrics))[-1]["corrupt_samples"] == len(samples)
    state = CheckpointStore(folder_of(config).checkpoints).complete()[-1].state()
    assert set(state["trainer"]["corrupt"]) == set(samples)
    strict = tiny_run(shards, tmp_path / "strict", data={"max_corrupt_samples": 0})
    assert "data.max_corrupt_samples=0" in run_ranks(1, run_all, [strict])[0][0]


def test_a_run_that_cannot_begin_is_refused_and_leaves_no_folder(shards: Path, tmp_path: Path):
    nothing = tiny_run(tmp_path / "nothing", tmp_path / "runs")
    too_large = tiny_run(shards, tmp_path / "runs", optim={"global_batch_size": 66})
    (tmp_path / "file").write_text("")
    no_folder = tiny_run(shards, tmp_path / "file")
    first, second, third = run_ranks(1, run_all, [nothing, too_large, no_folder])[0]
    assert "nothing does not exist" in first
    assert "holds 18 samples, fewer than one step takes (optim.global_batch_size=66): set optim.global" in second
    assert "set output_dir=FOLDER" in third
    assert not (tmp_path / "runs").exists()


def test_tensorboard_shows_a_resumed_run_once(shards: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_run(shards, tmp_path, log={"tensorboard": True})
    kill_after(config, 1, 5)
    assert run_ranks(1, run_training, config) == [EndReason.FINISHED]
    reader = EventAccumulator(str(folder_of(config).tensorboard))
    reader.Reload()
    drawn = reader.Scalars("loss")
    assert [scalar.step for scalar in drawn] == list(range(1, STEPS + 1))
    assert [scalar.value for scalar in drawn] == pytest.approx([row[1] for row in losses(config)])

"""Memory copies: their parts in this process, then real ranks. A folder takes the place of each node's /dev/shm."""

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from motionmae.checkpointing import memory_copies
from motionmae.checkpointing.memory_copies import MemoryCopies, Ring, _describe, _pieces
from motionmae.config import Config
from motionmae.distributed.context import DistributedContext
from motionmae.models.motionmae import build_motionmae
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import read_rows
from motionmae.runs.memory_folder import MemoryFolder, Share
from motionmae.training.setup import run_training
from tests.training.launch import Ranks, run_ranks, wait_until
from tests.training.memory_workers import (
    choose_states,
    copy_all,
    copy_until_full,
    load_all_copies,
    pretrain_on_nodes,
    roll_back_and_die,
)
from tests.training.shards import STEPS, make_shards, tiny_run

STAGES = [0, 1, 2, 3]
RANK = DistributedContext(rank=1, world=3, local_rank=1, device=torch.device("cpu"))


def test_shares_travel_in_a_ring_over_the_nodes():
    even = [Ring.find(rank, ["a", "a", "b", "b", "c", "c"]) for rank in range(6)]
    assert [each.receiver for each in even] == [2, 3, 4, 5, 0, 1]
    assert [each.senders for each in even] == [(4,), (5,), (0,), (1,), (2,), (3,)]
    assert [each.node for each in even[:3]] == [(0, 1), (0, 1), (2, 3)]
    uneven = [Ring.find(rank, ["a", "b", "a", "a"]) for rank in range(4)]  # ranks in any order
    assert [each.receiver for each in uneven] == [1, 0, 1, 1]
    assert uneven[1].senders == (0, 2, 3)
    assert Ring.find(1, ["a", "a"]) == Ring((0, 1), None, ())


def copies_of(ring: Ring, every: int = 5) -> MemoryCopies:
    copies: Any = MemoryCopies.__new__(MemoryCopies)
    copies._ring, copies._every, copies._rank = ring, every, RANK
    copies.folder = MemoryFolder(Path("/nowhere"))
    copies._thread = copies._error = copies._group = None
    copies._problem, copies._has_warned, copies.messages = "", False, []
    copies._log = copies.messages.append
    return copies


@pytest.mark.parametrize(
    ("free", "memory", "fits"),
    [(2200, 2200, True), (2199, 9999, False), (9999, 2199, False), (2199, 2199, False), (9999, 9999, True)],
)
def test_a_tenth_more_than_all_ranks_of_the_node_need_must_be_free(
    monkeypatch: pytest.MonkeyPatch, free: int, memory: int, fits: bool
):
    monkeypatch.setattr(memory_copies.memory_folder, "free_space", lambda path: free)
    monkeypatch.setattr(memory_copies, "free_bytes", lambda: memory)
    copies = copies_of(Ring((0, 1), None, ()))
    if fits:
        copies._check_free(1000)  # two ranks: 2,200 bytes
    else:
        with pytest.raises(OSError, match=r"^the node needs 2\.2e-06 GB for it and has 2\.2e-06 GB$"):
            copies._check_free(1000)


@pytest.mark.parametrize(("senders", "needed"), [((), 2200), ((4,), 4400)])
def test_the_share_of_the_other_node_needs_as_much_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, senders: tuple[int, ...], needed: int
):
    """A rank of two on its node copies 1,000 bytes; of them a tenth more must be free."""
    copies: Any = copies_of(Ring((1, 2), None, senders))
    copies.folder, copies._attempt = MemoryFolder(tmp_path / "user" / "run"), 3
    tensors = {
        "a": {kind: torch.zeros(size) for kind, size in (("parameter", 150), ("exp_avg", 50), ("exp_avg_sq", 50))}
    }
    staged: Any = SimpleNamespace(step=10, state={})
    free = [needed - 1]
    monkeypatch.setattr(memory_copies.memory_folder, "free_space", lambda path: free[0])
    monkeypatch.setattr(memory_copies, "free_bytes", lambda: 1 << 40)
    with pytest.raises(OSError, match="the node needs"):
        copies._write_own(staged, tensors, 12, "step-00000008")
    free[0] = needed
    share = copies._write_own(staged, tensors, 12, "step-00000008")
    folder = copies.folder.folder_of(share)
    assert share == Share(
        attempt=3, position=12, step=10, rank=1, world=3, base="step-00000008", files=share.files
    )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == sorted(entry.name for entry in share.files)
    assert len(share.files) == 2  # the state is written by rank 0 alone


def test_copies_are_due_at_multiples_of_their_interval():
    assert [step for step in range(1, 13) if copies_of(Ring((1,), None, ())).is_due(step)] == [5, 10]
    assert not copies_of(Ring((1,), None, ()), every=0).is_due(0)


def test_only_the_first_rank_of_a_node_cleans_up():
    assert copies_of(Ring((1, 2), None, ()))._is_first_of_node
    assert not copies_of(Ring((0, 1), None, ()))._is_first_of_node


def test_a_failed_copy_is_told_once_and_a_bug_is_raised():
    copies: Any = copies_of(Ring((1,), None, ()))
    copies.poll()
    copies.wait()
    copies._problem = "no space"
    for _ in range(2):
        copies._thread = threading.Thread(target=int)
        copies._thread.start()
        copies._thread.join()
        copies.poll()
        assert copies._thread is None
    (message,) = copies.messages
    assert message.startswith("the state cannot be copied to memory (no space); training continues")
    copies._thread, copies._error = threading.Thread(target=int), ValueError("a bug")
    copies._thread.start()
    with pytest.raises(ValueError, match="a bug"):
        copies.wait()
    waits = threading.Event()
    copies._thread, copies._error = threading.Thread(target=waits.wait, daemon=True), None
    copies._thread.start()
    copies.poll()  # does not wait
    assert copies._thread is not None
    waits.set()


def test_pieces_of_a_message_have_at_most_64_mib_and_errors_are_described():
    files = [torch.empty(n, dtype=torch.uint8) for n in (3, (64 << 20) + 1)]
    assert [len(piece) for piece in _pieces(files)] == [3, 64 << 20, 1]
    assert _describe(OSError(28, "No space left on device", "/x")) == "No space left on device"
    assert _describe(OSError("it needs more")) == "it needs more"


def test_the_thread_of_a_copy_yields_to_training_alone():
    """Linux keeps a nice value for each thread."""
    found: list[int] = []

    def work() -> None:
        memory_copies._yield_to_training()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [10] or (found == [before] and before > 10)  # only root may lower a nice value
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.fixture(scope="module")
def copied_by_three(tmp_path_factory: pytest.TempPathFactory):
    """Three ranks on three nodes copy 2 steps at each stage and take 2 more."""
    folder = tmp_path_factory.mktemp("nodes")
    return folder, run_ranks(3, copy_all, folder, 1, STAGES, 2, 2)[0]


@pytest.mark.parametrize(("world", "lost"), [(3, None), (2, "node2"), pytest.param(1, None, marks=pytest.mark.long)])
def test_any_number_of_ranks_reads_every_stage(copied_by_three, tmp_path: Path, world: int, lost: str | None):
    """With the third node gone, its share is on the first; the same world continues bitwise."""
    folder, expected = copied_by_three
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if lost:
        shutil.rmtree(tmp_path / lost)
    if world == 1:  # a single node without the share of rank 1
        with pytest.raises(AssertionError, match="found is not None"):
            run_ranks(1, load_all_copies, tmp_path, 1, [1], 2, 2)
        return
    for zero, (losses, final, updates) in run_ranks(world, load_all_copies, tmp_path, 1, STAGES, 2, 2)[0].items():
        before, weights = expected[zero]
        exact = world == 3
        assert losses == (before if exact else pytest.approx(before, rel=1e-6))
        difference = max(float((weights[name] - final[name]).abs().max()) for name in final)
        assert difference == 0 if exact else difference < 1e-6
        assert updates == 4


def test_a_full_memory_is_said_once_and_the_former_state_stays(tmp_path: Path):
    answers = run_ranks(2, copy_until_full, tmp_path, 1000)
    assert [states for states, _ in answers] == [[[1], [1], [3]]] * 2
    (message,) = answers[0][1]
    assert message.startswith("the state cannot be copied to memory (rank 1: the node needs ")
    assert "and has 1e-06 GB); training continues" in message
    assert "set checkpoint.memory_every_steps=0" in message


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def run_of(shards: Path, folder: Path, zero: int = 1, **checkpoint: int) -> Config:
    settings = {"every_steps": 1000, "memory_every_steps": 2, **checkpoint}
    return tiny_run(shards, folder, checkpoint=settings, engine={"zero_stage": zero})


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    config = run_of(shards, tmp_path_factory.mktemp("reference"), memory_every_steps=0)
    run_ranks(2, run_training, config)
    return final_state(config)


def final_state(config: Config) -> dict[str, torch.Tensor]:
    """All weights and moments of the last checkpoint."""
    (newest, *_) = reversed(CheckpointStore(RunFolder(config.run_folder).checkpoints).complete())
    assert newest.step == STEPS
    return {f"{path.name.split('-')[0]} {name}": value for path in newest.folder.glob("*.safetensors")
            for name, value in load_file(path).items()}  # fmt: skip


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def rows_of(config: Config, kind: str) -> list[dict]:
    return [row for row in read_rows(RunFolder(config.run_folder).events) if row["kind"] == kind]


def kill_before(config: Config, nodes: Path, step: int, world: int = 2, ranks_per_node: int = 1) -> None:
    """Kill one rank by -9 while it takes ``step``, then the others."""
    ranks = Ranks(world, pretrain_on_nodes, config, nodes, ranks_per_node, step)
    for rank in range(world):
        wait_until(lambda name=f"paused-{rank}": (nodes / name).exists(), "the pause")  # type: ignore[misc]
    ranks.processes[-1].kill()
    ranks.kill()


def shares_on(nodes: Path, node: int) -> list[Path]:
    return sorted((nodes / f"node{node}").glob("*/*/*/share-*.json"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("disaster", ["none", "node 0 lost", "a copy damaged"])
def test_a_killed_run_continues_from_memory_bitwise(
    shards: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path, disaster: str
):
    """7 steps were taken when a rank is killed. One is lost, of at most 2."""
    config = run_of(shards, tmp_path / "runs", zero=2 if disaster == "none" else 1)
    kill_before(config, tmp_path, 8)
    assert [len(shares_on(tmp_path, node)) for node in (0, 1)] == [2, 2]
    if disaster == "node 0 lost":
        shutil.rmtree(tmp_path / "node0")
    elif disaster == "a copy damaged":
        (victim,) = (tmp_path / "node0").glob("*/*/*/optimizer-00000-*")
        flip(victim)
    assert run_ranks(2, pretrain_on_nodes, config, tmp_path) == ["FINISHED"] * 2
    (resume,) = rows_of(config, "resume")
    assert (resume["step"], resume["source"]) == (6, "memory")  # step 7 is done again
    damaged = [row["reason"] for row in rows_of(config, "checkpoint_damaged")]
    assert len(damaged) == (disaster == "a copy damaged")
    assert_same(final_state(config), undisturbed)
    assert [path for node in (0, 1) for path in (tmp_path / f"node{node}").rglob("*")] == []  # freed at the end


@pytest.mark.parametrize("every", [pytest.param(3, marks=pytest.mark.long), 6])
def test_a_damaged_checkpoint_leaves_the_older_copy(
    shards: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path, every: int
):
    """The newest checkpoint, of step 6, is newer than the copy of step 5, and damaged; or it is the only one."""
    config = run_of(shards, tmp_path / "runs", every_steps=every, memory_every_steps=5 if every == 6 else 2)
    kill_before(config, tmp_path, 7)
    for node in (0, 1):  # copies of step 6 are incomplete, where there are some
        for share in (tmp_path / f"node{node}").glob("*/*/position-00000006-*/share-*"):
            share.unlink()
    flip(config.run_folder / "checkpoints/step-00000006/model-00000-of-00002.safetensors")
    assert run_ranks(2, pretrain_on_nodes, config, tmp_path) == ["FINISHED"] * 2
    (resume,) = rows_of(config, "resume")
    assert (resume["step"], resume["source"]) == ((5, "memory") if every == 6 else (3, "disk"))
    assert_same(final_state(config), undisturbed)


def test_both_copies_damaged_fall_back_to_the_disk(shards: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path):
    config = run_of(shards, tmp_path / "runs", every_steps=4, memory_every_steps=3)
    kill_before(config, tmp_path, 8)
    for node in (0, 1):
        (victim,) = (tmp_path / f"node{node}").glob("*/*/*/model-00001-*")
        flip(victim)
    assert run_ranks(2, pretrain_on_nodes, config, tmp_path) == ["FINISHED"] * 2
    (resume,) = rows_of(config, "resume")
    assert (resume["step"], resume["source"]) == (4, "disk")
    assert len(rows_of(config, "checkpoint_damaged")) == 2
    assert_same(final_state(config), undisturbed)


def test_which_state_a_resume_takes(tmp_path: Path):
    (chosen,) = run_ranks(1, choose_states, tmp_path)
    assert chosen == {
        "the newest": (12, 2),
        "older than the disk": None,
        "as new as the disk": (8, 1),
        "no checkpoint on disk": (3, 1),
        "a share is missing": (7, 1),
        "another attempt trained on from before": (7, 1),
        "another attempt began at this state": (12, 2),
        "the checkpoint before it was deleted": None,
        "the checkpoint before it is damaged": (12, 2),
        "the checkpoint before it is there": (12, 2),
    }


def test_a_run_that_is_stopped_or_starts_anew_leaves_no_copies_behind(shards: Path, tmp_path: Path):
    config = run_of(shards, tmp_path / "runs", memory_every_steps=1)
    kill_before(config, tmp_path, 4, world=1)
    assert len(shares_on(tmp_path, 0)) == 1
    changed = config.updated(
        {"optim.base_lr": 0.03}
    )  # nothing is on disk: other settings are allowed, without the copy
    ranks = Ranks(1, pretrain_on_nodes, changed, tmp_path)
    assert ranks.results() == ["FINISHED"]
    assert "the copy of step 3 in memory is not used: " in ranks.output()
    assert rows_of(config, "resume") == []
    other = run_of(shards, tmp_path / "other", memory_every_steps=1)
    RunFolder(other.run_folder).create()
    (other.run_folder / "stop").touch()
    assert run_ranks(1, pretrain_on_nodes, other, tmp_path) == ["STOPPED"]
    assert [path for path in (tmp_path / "node0").rglob("*") if path.is_file()] == []


@pytest.mark.long
def test_a_new_run_of_the_same_name_does_not_take_the_copies_of_the_deleted_one(shards: Path, tmp_path: Path):
    config = run_of(shards, tmp_path / "runs", memory_every_steps=1)
    kill_before(config, tmp_path, 4, world=1)
    shutil.rmtree(config.run_folder)
    assert run_ranks(1, pretrain_on_nodes, config, tmp_path) == ["FINISHED"]
    assert rows_of(config, "resume") == []


def test_a_rollback_discards_the_copies_before_it(shards: Path, tmp_path: Path):
    """The copy of step 15 has ten bad steps. A run that is killed after the rollback must not return to it."""
    checkpoint = {"every_steps": 4, "memory_every_steps": 3}
    config = tiny_run(shards, tmp_path / "runs", optim={"epochs": 8}, checkpoint=checkpoint)
    assert run_ranks(1, roll_back_and_die, config, tmp_path) == [(4, 16, [])]
    assert run_ranks(1, pretrain_on_nodes, config, tmp_path) == ["FINISHED"]
    (resume,) = rows_of(config, "resume")
    assert (resume["step"], resume["source"]) == (4, "disk")
    assert CheckpointStore(RunFolder(config.run_folder).checkpoints).complete()[-1].position == 24 + 12


@pytest.mark.parametrize("world", [3, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_copies_of_four_ranks_are_read_by_fewer_on_the_node_that_is_left(shards: Path, tmp_path: Path, world: int):
    config = run_of(shards, tmp_path / "runs").updated(
        {"optim.global_batch_size": 12, "optim.epochs": STEPS, "engine.micro_batch_size": 1, "engine.zero_stage": world}
    )
    alone = config.updated({"output_dir": str(tmp_path / "alone"), "checkpoint.memory_every_steps": 0})
    run_ranks(2, run_training, alone)
    kill_before(config, tmp_path, 6, world=4, ranks_per_node=2)
    assert [len(shares_on(tmp_path, node)) for node in (0, 1)] == [4, 4]
    shutil.rmtree(tmp_path / "node1")
    assert run_ranks(world, pretrain_on_nodes, config, tmp_path, world) == ["FINISHED"] * world
    (resume,) = rows_of(config, "resume")
    assert (resume["step"], resume["source"]) == (4, "memory")
    expected = final_state(alone)
    found = final_state(config)
    assert found.keys() == expected.keys()
    assert max(float((value - expected[name]).abs().max()) for name, value in found.items()) < 1e-5


@pytest.mark.parametrize("mode", ["full", pytest.param("linear", marks=pytest.mark.long)])
def test_a_fine_tuning_continues_from_memory_bitwise(tmp_path: Path, mode: str):
    """With a moving average of the weights, and with a frozen encoder that only the run folder has."""
    shards = make_shards(tmp_path / "shards", classes=3)
    init = tmp_path / "encoder.pth"
    torch.save({"model": build_motionmae(tiny_run(shards, tmp_path)).state_dict()}, init)
    finetune = {"init": str(init), "mode": mode, "mixup": 0.0, "cutmix": 0.0, "layer_decay": 1.0}
    changes = {"task": "finetune", "optim.ema_decay": 0.9, "data.repeated_sampling": 2, "finetune": finetune}
    config = run_of(shards, tmp_path / "runs").updated(changes)
    alone = config.updated({"output_dir": str(tmp_path / "alone"), "checkpoint.memory_every_steps": 0})
    run_ranks(1, run_training, alone)
    kill_before(config, tmp_path, 6, world=1)
    init.unlink()
    assert run_ranks(1, pretrain_on_nodes, config, tmp_path) == ["FINISHED"]
    (resume,) = rows_of(config, "resume")
    assert (resume["step"], resume["source"]) == (4, "memory")
    expected = final_state(alone)
    assert any(name.startswith("average ") for name in expected)
    assert_same(final_state(config), expected)

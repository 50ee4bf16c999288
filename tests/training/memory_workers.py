"""Work of the ranks in tests of memory copies. A folder for each "node" takes the place of its /dev/shm."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motionmae.checkpointing import sharded
from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.checkpointing.memory_resume import find_in_memory
from motionmae.config import Config, WatchdogConfig
from motionmae.data.loader import Batch
from motionmae.distributed.process_group import init_distributed
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine import sharded_state
from motionmae.runs import memory_folder
from motionmae.runs.checkpoint_manifest import STATE, describe
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.history import Attempt
from motionmae.runs.lease import Begun, Lease
from motionmae.runs.memory_folder import MemoryFolder, Share
from motionmae.training.callbacks.metrics import StepResult
from motionmae.training.setup import run_training
from motionmae.training.trainer import Trainer
from tests.training.engine_workers import Weights, new_engine, take_step, weights
from tests.training.save_workers import pretrain_on_bad_samples
from tests.training.tiny import config


def enter_node(nodes: Path, ranks_per_node: int) -> None:
    """Give this rank the memory of its node."""
    memory_folder.ROOT = nodes / f"node{int(os.environ['RANK']) // ranks_per_node}"
    memory_folder.ROOT.mkdir(parents=True, exist_ok=True)


def pretrain_on_nodes(config: Config, nodes: Path, ranks_per_node: int = 1, pause: int = 0) -> str:
    """Run; before step ``pause``, wait for the last memory copy, say so with a file, and stand still."""
    enter_node(nodes, ranks_per_node)
    forward_backward = Trainer.forward_backward

    def forward_backward_or_pause(trainer: Trainer, batches: Iterator[Batch]) -> StepResult:
        if trainer.state.step + 1 == pause:
            trainer.memory_copies.wait()
            trainer.checkpointer.wait()
            (nodes / f"paused-{trainer.rank.rank}").touch()
            time.sleep(1e6)
        return forward_backward(trainer, batches)

    Trainer.forward_backward = forward_backward_or_pause  # type: ignore[method-assign]
    try:
        return run_training(config).name
    finally:
        Trainer.forward_backward = forward_backward  # type: ignore[method-assign]


def _copies(folder: Path, attempt: int, rank: Any) -> MemoryCopies:
    lease = Lease(folder / "lease.json", Attempt(attempt, str(attempt)), run="run")
    return MemoryCopies(
        rank, Path("/runs", folder.name), lease, 1, Watchdog(WatchdogConfig(), Path(os.devnull), print), print
    )


def copy_all(
    folder: Path, ranks_per_node: int, zeros: list[int], steps: int, more: int
) -> dict[int, tuple[list[float], Weights]]:
    """Each stage: train, copy to memory twice, train on; return the losses after the copy and the final weights."""
    enter_node(folder, ranks_per_node)
    results = {}
    for zero in zeros:
        engine, rank = new_engine(config(zero))
        copies = _copies(folder / str(zero), 1, rank)
        for step in range(steps):
            take_step(engine, config(zero), rank, step)
            copies.start(engine, {"trainer": {"data_step": step + 1}}, step + 1, step + 1, None)
        later = [take_step(engine, config(zero), rank, step) for step in range(steps, steps + more)]
        copies.wait()
        assert copies.newest == steps
        results[zero] = (later, weights(engine))
        engine.close()
    return results


def load_all_copies(
    folder: Path, ranks_per_node: int, zeros: list[int], steps: int, more: int
) -> dict[int, tuple[list[float], Weights, int]]:
    """Continue each stage from memory."""
    enter_node(folder, ranks_per_node)
    results = {}
    for zero in zeros:
        engine, rank = new_engine(config(zero))
        copies = _copies(folder / str(zero), 2, rank)
        store = CheckpointStore(folder / "disk")
        found = find_in_memory(copies.folder, store, rank, copies.lease, copies.nodes, print)
        assert found is not None
        assert found.step == steps
        sharded.restore(engine, rank, found)
        losses = [take_step(engine, config(zero), rank, step) for step in range(steps, steps + more)]
        results[zero] = (losses, weights(engine), sharded_state.optimizer_steps(engine))
        engine.close()
    return results


def copy_until_full(folder: Path, free: int) -> list[Any]:
    """Copy three states; at the second, the last rank has only ``free`` bytes left. Return the states after each."""
    enter_node(folder, 1)
    engine, rank = new_engine(config(1))
    messages: list[str] = []
    copies = replace_log(_copies(folder / "run", 1, rank), messages)
    space, states = memory_folder.free_space, []
    for step in range(1, 4):
        if step == 2 and rank.rank == rank.world - 1:
            memory_folder.free_space = lambda path: free
        copies.start(engine, {}, step, step, None)
        copies.wait()
        memory_folder.free_space = space
        states.append(sorted({share.position for share in copies.folder.shares()}))
    return [states, messages]


def replace_log(copies: MemoryCopies, messages: list[str]) -> MemoryCopies:
    copies._log = messages.append
    return copies


def _put(folder: MemoryFolder, position: int, attempt: int, base: str | None = None, world: int = 1) -> None:
    """Write the share of rank 0 of a state."""
    state = folder.begin(attempt, position)
    (state / STATE).write_text(json.dumps({"trainer": {"data_step": position}}))
    files = (describe(state / STATE),)
    share = Share(
        attempt=attempt, position=position, step=position, rank=0, world=world, base=base, files=files
    )  # fmt: skip
    folder.commit(share)


def choose_states(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Return the position and attempt that a resume takes from memory in each case; None if it takes none."""
    rank = init_distributed(config().engine)
    chosen = {}

    def case(name: str, states: list[tuple[Any, ...]], saved: list[int], damaged: str = "", begun: Any = ()) -> None:
        memory_folder.ROOT = folder / name / "shm"
        memory_folder.ROOT.mkdir(parents=True)
        store = CheckpointStore(folder / name / "checkpoints")
        for step in saved:
            store.commit(store.begin(step), step, {"trainer": {"data_step": step}}, [])
        if damaged:
            (store.folder / damaged).rename(store.folder / f"damaged-{damaged}")
        lease = Lease(folder / "lease.json", Attempt(9, "9"), "run", tuple(Begun(*each) for each in begun))
        memory = memory_folder.memory_folder(folder / name, lease.run)
        for state in states:
            _put(memory, *state)
        found = find_in_memory(memory, store, rank, lease, ["node"], print)
        chosen[name] = None if found is None else (found.position, int(found.folder.name.rpartition("-")[2]))

    case("the newest", [(7, 1), (12, 2), (9, 3)], [5])
    case("older than the disk", [(7, 1)], [8])
    case("as new as the disk", [(8, 1)], [8])
    case("no checkpoint on disk", [(3, 1)], [])
    case("a share is missing", [(7, 1), (9, 1, None, 2)], [])
    case("another attempt trained on from before", [(12, 2), (7, 1)], [6], begun=[(3, 7)])
    case("another attempt began at this state", [(12, 2)], [6], begun=[(3, 12)])
    case("the checkpoint before it was deleted", [(12, 2, "step-00000010")], [5])
    case("the checkpoint before it is damaged", [(12, 2, "step-00000010")], [5, 10], "step-00000010")
    case("the checkpoint before it is there", [(12, 2, "step-00000010")], [5, 10])
    return chosen


def roll_back_and_die(config: Config, nodes: Path) -> tuple[int, int, list[int]]:
    """Run on samples that are bad from data step 5 to 15, and end right after the rollback and its save.

    Returns the step, the position in the data, and the positions of the states in memory.
    """
    enter_node(nodes, 1)
    rollback = Trainer.rollback
    result: list[Any] = []

    def rollback_and_die(trainer: Trainer, *arguments: Any) -> Any:
        trainer.memory_copies.wait()
        before = [share.position for share in trainer.memory_copies.folder.shares()]
        assert before == [15]
        rollback(trainer, *arguments)
        trainer.checkpointer.wait()
        left = [share.position for share in trainer.memory_copies.folder.shares()]
        result.append((trainer.state.step, trainer.state.data_step, left))
        raise KeyboardInterrupt

    Trainer.rollback = rollback_and_die  # type: ignore[method-assign]
    try:
        end = pretrain_on_bad_samples(config, 5, 15)
    except KeyboardInterrupt:
        return result[0]
    raise AssertionError(end)

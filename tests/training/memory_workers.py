"""Work of the ranks in tests of memory copies. A folder for each "node" takes the place of its /dev/shm."""

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
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine import sharded_state
from motionmae.runs import memory_folder
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.history import Attempt
from motionmae.runs.lease import Lease
from motionmae.training.callbacks.metrics import StepResult
from motionmae.training.setup import run_training
from motionmae.training.trainer import Trainer
from tests.training.engine_workers import Weights, new_engine, take_step, weights
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

"""Work of the ranks in test_async_checkpointer.py: training and saving on a slow, full, or hanging disk."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from motionmae.checkpointing import sharded
from motionmae.checkpointing.async_checkpointer import AsyncCheckpointer
from motionmae.checkpointing.sharded import write_tensors
from motionmae.config import Config, WatchdogConfig
from motionmae.data.loader import Batch
from motionmae.distributed.context import DistributedContext, broadcast_object
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.runs.checkpoint_store import CheckpointStore, FileEntry
from motionmae.runs.end_reason import LeaseLost
from motionmae.runs.lease import acquire_lease
from motionmae.training.callbacks.metrics import StepResult
from motionmae.training.setup import run_training
from motionmae.training.trainer import Trainer
from tests.training.engine_workers import new_engine, take_step, weights
from tests.training.tiny import config


class Disk:
    """Replaces the write of a file on this rank: slow, failing, or hanging."""

    def __init__(self) -> None:
        self.delay, self.full, self.stuck = 0.0, False, False
        sharded.write_tensors = self.write  # type: ignore[assignment]

    def write(self, path: Path, *arguments: Any) -> FileEntry:
        if self.stuck and "step-00000006" in str(path):
            path.write_bytes(b"half of it")
            time.sleep(1e6)
        time.sleep(self.delay)
        if self.full:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_tensors(path, *arguments)


def new_checkpointer(folder: Path) -> tuple[Engine, DistributedContext, AsyncCheckpointer, Disk]:
    engine, rank = new_engine(config(1))
    keep = config(1).checkpoint.model_copy(update={"keep_last": 2})
    lease = broadcast_object(acquire_lease(folder) if rank.is_rank_zero else None)
    watchdog = Watchdog(WatchdogConfig(), folder / "stacks", print)
    return (
        engine,
        rank,
        AsyncCheckpointer(CheckpointStore(folder / "checkpoints"), rank, lease, keep, watchdog),
        Disk(),
    )


def save_beside_training(folder: Path) -> dict[str, Any]:
    """Train while a slow disk writes a checkpoint; return results and times."""
    engine, rank, checkpointer, disk = new_checkpointer(folder)
    take_step(engine, config(1), rank, 0)
    saved_weights = weights(engine)
    disk.delay = 1.0
    start = time.perf_counter()
    checkpointer.start(engine, 1, {"trainer": {"data_step": 1}}, start)
    started = time.perf_counter() - start
    losses = [take_step(engine, config(1), rank, step) for step in range(1, 4)]
    early = checkpointer.poll()
    waited = checkpointer.wait()
    disk.delay = 0.0
    checkpointer.start(engine, 4, {"trainer": {"data_step": 4}}, time.perf_counter())
    second = checkpointer.wait()
    return {
        "weights": (saved_weights, weights(engine)), "started": started, "losses": losses, "early": early,
        "first": waited, "second": second, "nothing": checkpointer.wait(),
    }  # fmt: skip


def fail_and_recover(folder: Path) -> list[Any]:
    """Save five times, the second failing on the last rank; return error and folder names after each.

    The states say that step 1 is the best by validation.
    """
    engine, rank, checkpointer, disk = new_checkpointer(folder)
    errors = []
    state = {"trainer": {"validation": {"best": {"step": 1, "metric": "top1", "value": 82.5}}}}
    for step in range(1, 6):
        disk.full = step == 2 and rank.rank == rank.world - 1
        checkpointer.start(engine, step, state, time.perf_counter())
        saved = checkpointer.wait()
        assert saved is not None
        dist.barrier()  # rank 0 has removed the partial checkpoint
        errors.append((saved.error, sorted(path.name for path in (folder / "checkpoints").iterdir())))
        dist.barrier()
    return errors


def be_taken_over(folder: Path) -> tuple[str, list[str]]:
    """Acquire a new lease during a write; return the write's error and the committed checkpoints."""
    engine, rank, checkpointer, disk = new_checkpointer(folder)
    disk.delay = 1.0
    checkpointer.start(engine, 1, {}, time.perf_counter())
    if rank.is_rank_zero:
        acquire_lease(folder)
    sentence = ""
    try:
        checkpointer.wait()
    except LeaseLost as error:
        sentence = str(error)
    dist.barrier()
    return sentence, [path.name for path in (folder / "checkpoints").glob("step-*")]


def pretrain_on_a_stuck_disk(config: Config) -> None:
    """Run; the write of step 6 hangs on the last rank."""
    disk = Disk()
    disk.stuck = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    run_training(config)


def pretrain_and_hang_in_a_save(config: Config) -> None:
    """Run; the last rank hangs when the state of step 6 is copied, in which all ranks take part."""
    stage = sharded.stage

    def hang(engine: Engine, rank: DistributedContext, step: int, *arguments: Any) -> Any:
        if step == 6 and rank.rank == rank.world - 1:
            time.sleep(1e6)
        return stage(engine, rank, step, *arguments)

    sharded.stage = hang  # type: ignore[assignment]
    run_training(config)


def pretrain_on_bad_samples(config: Config, first: int, last: int) -> str:
    """Run; the losses of data steps ``first`` to ``last`` are not finite. Returns the end reason or the error."""
    forward_backward = Trainer.forward_backward

    def poisoned(trainer: Trainer, batches: Iterator[Batch]) -> StepResult:
        forward = trainer.task.forward

        def forward_poisoned(*inputs: Any) -> Any:
            total, *others = forward(*inputs)
            return [total * (float("nan") if first <= trainer.state.data_step <= last else 1.0), *others]

        with contextlib.ExitStack() as stack:
            trainer.task.forward = forward_poisoned  # type: ignore[method-assign]
            stack.callback(lambda: delattr(trainer.task, "forward"))
            return forward_backward(trainer, batches)

    Trainer.forward_backward = poisoned  # type: ignore[method-assign]
    try:
        return run_training(config).name
    except Exception as error:
        return str(error)
    finally:
        Trainer.forward_backward = forward_backward  # type: ignore[method-assign]

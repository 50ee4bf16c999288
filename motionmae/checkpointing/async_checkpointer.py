"""Asynchronous checkpoints: training waits for a copy to host memory, and a thread writes the copy to disk.

The thread also flushes, hashes, agrees with all ranks, writes the manifest, and removes old checkpoints. The threads of
all ranks use their own gloo group and never interfere with a collective of training. At most one write is in progress:
a run holds one copy in host memory (12 bytes a parameter over all ranks). If the previous write is still running, the
next save waits for it and logs how long.
"""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist

from motionmae.checkpointing import sharded
from motionmae.checkpointing.sharded import CheckpointError, PinnedStagingBuffer, StagedState
from motionmae.config import CheckpointConfig
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.runs.best_checkpoint import best_of
from motionmae.runs.checkpoint_manifest import Checkpoint
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.lease import Lease

CLOSE_SECONDS = 60.0  # time that a write in progress has to finish after the attempt fails


@dataclass(frozen=True)
class SaveResult:
    """Result of a save; the same on every rank except for the times."""

    step: int
    checkpoint: Checkpoint | None  # None if the save failed, which leaves the store unchanged
    error: str
    waited: float  # seconds that training waited for the previous write
    blocking: float  # seconds that training waited in total: for the previous write and for the copy
    seconds: float  # seconds from the request to the commit


class AsyncCheckpointer:
    """Writer of one run's checkpoints. All ranks call the same methods in the same order, from the main thread."""

    def __init__(
        self, store: CheckpointStore, rank: DistributedContext, lease: Lease, keep: CheckpointConfig, watchdog: Watchdog
    ) -> None:
        self._store, self._rank, self._lease, self._keep, self._watchdog = store, rank, lease, keep, watchdog
        timeout = timedelta(hours=4)  # above the watchdog's limit for a write
        group = dist.new_group(backend="gloo", timeout=timeout) if rank.world > 1 else None
        self._group = cast(dist.ProcessGroup | None, group)
        self._buffer = PinnedStagingBuffer(pinned=rank.device.type == "cuda")
        self._thread: threading.Thread | None = None
        self._result: SaveResult | None = None
        self._error: BaseException | None = None

    def start(self, engine: Engine, step: int, state: dict[str, Any], requested: float, waited: float = 0.0) -> None:
        """Copy the engine's state and begin to write it. All ranks must call this. Call :meth:`wait` first.

        Args:
            state: content of state.json.
            requested: ``time.perf_counter()`` when the save was due.
            waited: seconds since ``requested`` spent in :meth:`wait`.
        """
        assert self._thread is None, "one write at a time"
        with self._watchdog.during(f"copying the state of step {step}", self._watchdog.limits.step_seconds):
            staged = sharded.stage(engine, self._rank, step, state, self._buffer)  # no disk takes part
        blocking = time.perf_counter() - requested
        self._thread = threading.Thread(
            target=self._write, args=(staged, requested, waited, blocking), name="checkpoint-writer", daemon=True
        )
        self._thread.start()

    @property
    def is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def poll(self) -> SaveResult | None:
        """Return the result of the last save once this rank has finished it, without waiting."""
        return None if self.is_writing else self.wait()

    def wait(self) -> SaveResult | None:
        """Wait for the write in progress and return its result; return None if there is none.

        Raises:
            LeaseLost: a newer attempt holds the lease on the run folder.
            RuntimeError: the other ranks are gone.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        return self._result

    def close(self) -> None:
        """Wait up to CLOSE_SECONDS for a write in progress. The next attempt removes an unfinished checkpoint."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _write(self, staged: StagedState, requested: float, waited: float, blocking: float) -> None:
        checkpoint, error = None, ""
        try:
            what, limit = f"writing the checkpoint of step {staged.step}", self._watchdog.limits.save_seconds
            with self._watchdog.during(what, limit, thread="checkpoint-writer"):
                checkpoint = sharded.write(staged, self._store, self._rank, self._lease, self._group)
                if self._rank.is_rank_zero:
                    best = checkpoint and best_of(checkpoint)
                    self._store.prune(self._keep.keep_last, self._keep.keep_every, best.step if best else None)
        except CheckpointError as failure:
            error = str(failure)
        except BaseException as failure:
            self._error = failure
        self._result = SaveResult(staged.step, checkpoint, error, waited, blocking, time.perf_counter() - requested)

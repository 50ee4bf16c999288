"""Checkpoints written while training goes on: a copy to host memory stops it, the disk does not.

:meth:`AsyncCheckpointer.start` copies this rank's share into host memory that is used again for every checkpoint, and leaves the
rest to a thread: writing, flushing, hashing, the agreement of all ranks, the manifest, the removal of old checkpoints.
The ranks' threads talk over a gloo group of their own, which no other code uses, so they never meet a collective of
training. One write is under way at most, so a run holds one copy in host memory (12 bytes a parameter over all ranks).
A save that comes due before the last one is written waits for it: a disk that is slower than
``checkpoint.every_steps`` holds training up, and says so, in place of letting it run ever further ahead of its last
checkpoint.
"""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist

from motionmae.checkpointing import sharded
from motionmae.checkpointing.sharded import CheckpointError, PinnedStagingBuffer, StagedState
from motionmae.config import Config
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.runs.checkpoint_store import Checkpoint, CheckpointStore
from motionmae.runs.lease import Lease

GROUP_TIMEOUT = timedelta(hours=4)
"""How long a rank's thread waits for the slowest disk; the watchdog is earlier."""

CLOSE_SECONDS = 60.0
"""How long an attempt that ends by an error lets a write finish."""


@dataclass(frozen=True)
class SaveResult:
    """How a save went; the same on every rank but for the times."""

    step: int
    checkpoint: Checkpoint | None
    """None: it failed, and the store is as before."""
    error: str
    """Why it failed."""
    waited: float
    """Seconds that training stood still for the write before this one."""
    blocking: float
    """Seconds that training stood still in all: for the write before and for the copy."""
    seconds: float
    """Seconds from the request to the commit."""


class AsyncCheckpointer:
    """Saves one run's checkpoints. Its methods are called by all ranks alike, from the main thread.

    Args:
        store: where they go.
        rank: this process.
        lease: of the run folder; must hold for a write to begin and to be committed.
        config: which checkpoints stay, and how long a write may take.
        watchdog: of this process.
    """

    def __init__(
        self, store: CheckpointStore, rank: DistributedContext, lease: Lease, config: Config, watchdog: Watchdog
    ) -> None:
        self._store, self._rank, self._claim = store, rank, lease
        self._config, self._watchdog = config, watchdog
        group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT) if rank.world > 1 else None
        self._group = cast(dist.ProcessGroup | None, group)
        self._memory = PinnedStagingBuffer(pinned=rank.device.type == "cuda")
        self._thread: threading.Thread | None = None
        self._saved: SaveResult | None = None
        self._failure: BaseException | None = None

    def start(self, engine: Engine, step: int, state: dict[str, Any], requested: float, waited: float = 0.0) -> None:
        """Copy the engine's state and begin to write it. Collective. The save before must have been collected.

        Args:
            engine: between two steps.
            step: steps done.
            state: content of state.json.
            requested: ``time.perf_counter()`` when the save came due.
            waited: seconds since then that went to :meth:`wait`.
        """
        assert self._thread is None, "one write at a time"
        taken = sharded.snapshot(engine, self._rank, step, state, self._memory)
        blocking = time.perf_counter() - requested
        self._thread = threading.Thread(
            target=self._write, args=(taken, requested, waited, blocking), name="checkpoint-writer", daemon=True
        )
        self._thread.start()

    @property
    def under_way(self) -> bool:
        """Whether this rank is writing."""
        return self._thread is not None and self._thread.is_alive()

    def finished(self) -> SaveResult | None:
        """How the last save went, once, as soon as it is over on this rank; never waits."""
        return None if self.under_way else self.wait()

    def wait(self) -> SaveResult | None:
        """Wait for the write under way; how it went, or None if there is none.

        Raises:
            LeaseLost: if a newer attempt has claimed the run folder.
            RuntimeError: as a collective does whose peers are gone.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        if self._failure is not None:
            raise self._failure
        return self._saved

    def close(self) -> None:
        """Let a write that is under way finish, if it does soon; otherwise the next start removes what it leaves."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _write(self, taken: StagedState, requested: float, waited: float, blocking: float) -> None:
        written, error = None, ""
        try:
            what, limit = f"writing the checkpoint of step {taken.step}", self._config.watchdog.save_seconds
            with self._watchdog.during(what, limit, who="checkpoint-writer"):
                written = sharded.write(taken, self._store, self._rank, self._claim, self._group)
                if self._rank.is_rank_zero:
                    keep = self._config.checkpoint
                    self._store.prune(keep.keep_last, keep.keep_every)
        except CheckpointError as failure:
            error = str(failure)
        except BaseException as failure:
            self._failure = failure
        self._saved = SaveResult(taken.step, written, error, waited, blocking, time.perf_counter() - requested)

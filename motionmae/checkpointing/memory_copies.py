"""Writer of memory copies: every few steps, the whole state of a run goes to the memory of two nodes.

Each rank writes its share to its node (:mod:`motionmae.runs.memory_folder`) and sends it to a rank of the next node,
which keeps it too. Either node may then be lost. A run on one node has one copy, which a dead process does not take
along. The scheme is that of Gemini (https://doi.org/10.1145/3600006.3613145) and of NVIDIA's resiliency extension; the
files are those of a checkpoint on disk, so that every number of ranks and every ZeRO stage can read them.

Training waits for the copy from the device to host memory only. A thread does the rest, with a gloo group of its own.
The former state is deleted once all ranks have the new one. A failure, such as a full /dev/shm, is logged once; then
the former state stays, and training continues.
"""

import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from motionmae.checkpointing import sharded
from motionmae.checkpointing.sharded import PinnedStagingBuffer, StagedState
from motionmae.data.free_memory import free_bytes
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.json_text import parse_json
from motionmae.runs import memory_folder
from motionmae.runs.checkpoint_manifest import STATE
from motionmae.runs.lease import Lease
from motionmae.runs.memory_folder import MemoryFolder, Share

CLOSE_SECONDS = 5.0  # time that a copy in progress has to finish after the attempt fails
SLOW_SECONDS = 1.0  # waits for the former copy that are longer than this are logged, once
_NICE = 10
_PIECE = 64 << 20  # bytes of one message between nodes
_SPARE = 1.1  # memory that must be free, as a multiple of the copies that are about to be written


@dataclass(frozen=True)
class Ring:
    """Ranks between which the shares travel, in rings over the nodes."""

    node: tuple[int, ...]  # all ranks of this rank's node
    receiver: int | None  # rank on the next node that keeps this rank's share; None on a single node
    senders: tuple[int, ...]  # ranks whose shares this rank keeps

    @classmethod
    def find(cls, rank: int, nodes: list[str]) -> "Ring":
        """Find the place of ``rank``; ``nodes`` has the node of each rank.

        The i-th rank of a node sends to the i-th rank of the next node, also where nodes differ in their number of
        ranks.
        """
        ranks = [[other for other, name in enumerate(nodes) if name == node] for node in dict.fromkeys(nodes)]
        receivers: dict[int, int] = {}
        for number, here in enumerate(ranks):
            following = ranks[(number + 1) % len(ranks)]
            receivers |= {each: following[place % len(following)] for place, each in enumerate(here)}
        node = next(tuple(here) for here in ranks if rank in here)
        if len(ranks) == 1:
            return cls(node, None, ())
        return cls(node, receivers[rank], tuple(each for each, to in receivers.items() if to == rank))


class MemoryCopies:
    """Memory copies of one attempt. All ranks call the same methods in the same order, from the main thread.

    Args:
        every_steps: steps between copies; 0 writes none.
        log: prints a message on rank 0.

    Attributes:
        nodes: identity of each rank's node.
        newest: step of the newest complete copy of this attempt; None before the first.
    """

    def __init__(
        self,
        rank: DistributedContext,
        run: Path,
        lease: Lease,
        every_steps: int,
        watchdog: Watchdog,
        log: Callable[[str], None],
    ) -> None:
        self.folder = memory_folder.memory_folder(run, lease.run)
        self.newest: int | None = None
        self.lease = lease
        self._rank, self._attempt, self._every = rank, lease.attempt.number, every_steps
        self._watchdog, self._log = watchdog, log
        self.nodes: list[str] = gather_objects(_node_of(self.folder))
        self._ring = Ring.find(rank.rank, self.nodes)
        self._buffer = PinnedStagingBuffer(pinned=rank.device.type == "cuda")
        group = dist.new_group(backend="gloo", timeout=timedelta(hours=1)) if every_steps and rank.world > 1 else None
        self._group = cast(dist.ProcessGroup | None, group)
        self._thread: threading.Thread | None = None
        self._problem = ""
        self._error: BaseException | None = None
        self._has_warned = self._has_waited = False
        if every_steps and self._is_first_of_node:
            memory_folder.remove_abandoned(self.folder)

    def is_due(self, step: int) -> bool:
        """Return whether the state after ``step`` steps is copied."""
        return self._every > 0 and step % self._every == 0

    def start(self, engine: Engine, state: dict[str, Any], step: int, position: int, base: str | None) -> None:
        """Copy the engine's state to host memory and begin to write it. All ranks must call this.

        Training waits for the former copy if it is still in progress: a run is never two intervals ahead of its copy.

        Args:
            state: content of state.json.
            position: steps of data consumed.
            base: name of the newest checkpoint on disk; None without one.
        """
        began = time.perf_counter()
        self.wait()
        if (waited := time.perf_counter() - began) > SLOW_SECONDS and not self._has_waited:
            self._has_waited = True
            self._log(
                f"training waited {waited:.1f} s for the former memory copy: raise checkpoint.memory_every_steps (now "
                f"{self._every})"
            )
        staged = sharded.stage(engine, self._rank, step, state, self._buffer)
        self._thread = threading.Thread(
            target=self._copy, args=(staged, position, base), name="memory-copies", daemon=True
        )
        self._thread.start()

    def poll(self) -> None:
        """Log the failure of a copy that this rank has ended; return at once if the copy is still in progress."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the copy in progress.

        Raises:
            RuntimeError: the other ranks are gone.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        if self._problem and not self._has_warned:
            self._has_warned = True
            self._log(
                f"the state cannot be copied to memory ({self._problem}); training continues, and a failure loses the "
                "steps since the last checkpoint or copy: free memory, or set checkpoint.memory_every_steps=0"
            )

    def discard(self) -> None:
        """Delete all copies of the run on the nodes of this attempt, because they are out of date.

        All ranks must call this.
        """
        self.wait()
        if self._is_first_of_node:
            self.folder.remove()
        self.newest = None

    def close(self) -> None:
        """Wait up to CLOSE_SECONDS for a copy in progress."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    @property
    def _is_first_of_node(self) -> bool:
        return self._rank.rank == self._ring.node[0]

    def _copy(self, staged: StagedState, position: int, base: str | None) -> None:
        try:
            _yield_to_training()
            what, limit = f"copying the state of step {staged.step} to memory", self._watchdog.limits.save_seconds
            with self._watchdog.during(what, limit, thread="memory-copies"):
                self._problem = self._write(staged, position, base)
                if not self._problem:
                    self.newest = staged.step
                if self._is_first_of_node:
                    self._clean_up(position)
        except BaseException as error:
            self._error = error

    def _clean_up(self, position: int) -> None:
        """Delete the former states, or the new one if it is incomplete. No rank writes now."""
        if self._problem:
            self.folder.remove_state(self._attempt, position)
        else:
            self.folder.remove_others(self._attempt, position)

    def _write(self, staged: StagedState, position: int, base: str | None) -> str:
        """Write this rank's share here and on the next node; return what failed on any rank."""
        tensors = sharded.gather_shards(staged, self._rank, self._group)
        own, problem = None, ""
        try:
            own = self._write_own(staged, tensors, position, base)
        except OSError as error:
            problem = _describe(error)
        if (problem := self._first_problem(problem)) or own is None:
            return problem
        received: list[Share] = []
        if self._ring.receiver is not None:
            received = self._exchange_shares(own)
            if problem := self._receive_files(own, received):
                return problem
        try:
            for share in (own, *received):
                self.folder.commit(share)
        except OSError as error:
            problem = _describe(error)
        return self._first_problem(problem)

    def _write_own(
        self, staged: StagedState, tensors: dict[str, dict[str, Tensor]], position: int, base: str | None
    ) -> Share:
        folder = self.folder.begin(self._attempt, position)
        size = sum(value.nbytes for kinds in tensors.values() for value in kinds.values())
        self._check_free(2 * size if self._ring.senders else size)
        files = sharded.write_share(tensors, folder, self._rank)
        if self._rank.is_rank_zero:
            files.append(sharded.write_state(folder / STATE, staged.state))
        rank, world = self._rank.rank, self._rank.world
        return Share(
            attempt=self._attempt, position=position, step=staged.step, rank=rank, world=world, base=base,
            files=tuple(files),
        )  # fmt: skip

    def _check_free(self, size: int) -> None:
        """Raise an OSError before the copies of this node would fill /dev/shm or the memory of the job."""
        needed = int(_SPARE * size * len(self._ring.node))
        free = min(memory_folder.free_space(self.folder.path), free_bytes())
        if needed > free:
            raise OSError(f"the node needs {needed / 1e9:.3g} GB for it and has {free / 1e9:.3g} GB")

    def _exchange_shares(self, own: Share) -> list[Share]:
        """Send the description of the own share, and return those of the shares that this rank keeps."""
        content = torch.frombuffer(bytearray(own.model_dump_json().encode()), dtype=torch.uint8)
        sends = [self._send(torch.tensor([len(content)]), 0), self._send(content, 1)]
        shares = []
        for sender in self._ring.senders:
            length = torch.zeros(1, dtype=torch.int64)
            dist.recv(length, src=sender, group=self._group, tag=0)
            answer = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(answer, src=sender, group=self._group, tag=1)
            shares.append(parse_json(answer.numpy().tobytes(), Share))
        for send in sends:
            send.wait()
        return shares

    def _receive_files(self, own: Share, received: list[Share]) -> str:
        """Send the files of the own share and write those of the others; return what failed on any rank."""
        problem, targets = "", []
        try:
            targets = [self._map(share, new=True) for share in received]
        except OSError as error:  # a full file system must be found out before its memory is written
            problem = _describe(error)
        if problem := self._first_problem(problem):
            return problem
        sends = [self._send(piece, 2) for piece in _pieces(self._map(own, new=False))]
        for sender, files in zip(self._ring.senders, targets, strict=True):
            for piece in _pieces(files):
                dist.recv(piece, src=sender, group=self._group, tag=2)
        for send in sends:
            send.wait()
        return ""

    def _send(self, value: Tensor, tag: int) -> dist.Work:
        work = dist.isend(value, dst=self._ring.receiver, group=self._group, tag=tag)
        assert work is not None
        return work

    def _map(self, share: Share, new: bool) -> list[Tensor]:
        """Map the files of a share as bytes. The memory of new files is reserved, or an OSError is raised."""
        tensors = []
        for entry in share.files:
            flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT | os.O_TRUNC if new else 0)
            descriptor = os.open(self.folder.folder_of(share) / entry.name, flags, 0o600)
            try:
                if new:
                    os.posix_fallocate(descriptor, 0, entry.bytes)
                block = mmap.mmap(descriptor, entry.bytes)
            finally:
                os.close(descriptor)
            tensors.append(torch.from_numpy(np.frombuffer(block, dtype=np.uint8)))
        return tensors

    def _first_problem(self, problem: str) -> str:
        """Return the first rank's problem on every rank; empty if no rank has one."""
        if self._group is None:
            return problem
        failed = torch.tensor([bool(problem)], dtype=torch.int32)
        dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self._group)
        if not failed.item():
            return ""
        answers = gather_objects(problem, self._group)
        return next(f"rank {number}: {text}" for number, text in enumerate(answers) if text)


def _node_of(folder: MemoryFolder) -> str:
    try:
        return memory_folder.node_identity(folder)
    except OSError:  # no /dev/shm, as outside Linux
        return socket.gethostname()


def _yield_to_training() -> None:
    """Lower the priority of this thread, which Linux keeps for each thread: hashing takes a core's time."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _pieces(files: list[Tensor]) -> Iterator[Tensor]:
    for file in files:
        yield from file.split(_PIECE)


def _describe(error: OSError) -> str:
    return error.strerror or str(error)

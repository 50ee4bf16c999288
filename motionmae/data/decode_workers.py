"""Decoding in processes of their own: threads of one process meet at Python's lock some seventy times a clip.

Each worker is started afresh (spawn), opens the shards itself, imports no torch, and decodes straight into the batch,
whose memory it maps. A share of a micro-batch costs the training process two short messages.
"""

import mmap
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest, ShardSource
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError

if TYPE_CHECKING:
    from motionmae.data.shared_buffers import SharedBufferPool  # which imports torch

_CONTEXT = multiprocessing.get_context("spawn")
_PIPES = 2
"""Of a worker: while the answer of one is dealt with, it decodes for the other."""
_JOINING = threading.Lock()
"""Of two threads that wait for one process at once, one would not hear how it ended."""
_LEFT_TO_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Slurm sends its signals to every process of a step, a terminal its Ctrl-C; workers end with their parent."""


class WorkerFailed(RuntimeError):  # noqa: N818 - it names what happened
    """A decoding process ended by itself, or met what it was not made for."""


class _Task(NamedTuple):
    """One message to a worker."""

    wanted: list[ClipRequest]
    blocks: list[int]
    """Names (file descriptors of the training process) of the clips' memory and, where wanted, the flows'."""
    shapes: list[tuple[int, ...]]
    new: list[bool]
    """Whether the descriptor follows, for the worker to map."""


class _Pipe(NamedTuple):
    """One way to a worker."""

    process: SpawnProcess
    connection: Connection
    known: set[int]
    """Blocks that were sent through it."""


class WorkerSource:
    """Clips out of a folder of shards, decoded by processes (:class:`motionmae.data.clip_decoder.ClipDecoder`).

    Args:
        data: the folder, how clips are cut, how many workers.
        clip: frames, stride, size.
        manifest: of the folder.
        clips: memory of the batches.
        flows: memory of their optical flow, where it is wanted.

    Raises:
        UserError: shards that the manifest names are not there.
    """

    def __init__(
        self,
        data: DataConfig,
        clip: ClipConfig,
        manifest: Manifest,
        clips: "SharedBufferPool",
        flows: "SharedBufferPool | None",
    ):
        self.threads = _PIPES * data.workers
        self._own = ShardSource(data, clip, manifest)  # finds what is missing at once
        self.reader = self._own.reader
        self._clips, self._flows = clips, flows
        self._free: SimpleQueue[_Pipe] = SimpleQueue()
        workers = [_start(data, clip, manifest) for _ in range(data.workers)]
        self._processes = [process for process, _ in workers]
        for number in range(_PIPES):  # the first pipe of each worker before the second of any
            for process, connections in workers:
                self._free.put(_Pipe(process, connections[number], set()))

    def decode_into(
        self, wanted: Sequence[ClipRequest], clips: np.ndarray, flows: np.ndarray | None
    ) -> list[SampleMeta | CorruptSample]:
        """See :meth:`motionmae.data.clip_decoder.ClipDecoder.fill`; the arrays are those of the memory.

        Raises:
            WorkerFailed: the process was killed, most often for want of memory.
        """
        arrays, blocks = [clips], [self._clips.file(clips)]
        if flows is not None and self._flows is not None:
            arrays.append(flows)
            blocks.append(self._flows.file(flows))
        pipe = self._free.get()
        try:
            new = [block not in pipe.known for block in blocks]
            pipe.connection.send(_Task(list(wanted), blocks, [array.shape for array in arrays], new))
            for block in (block for block, is_new in zip(blocks, new, strict=True) if is_new):
                send_handle(pipe.connection, block, pipe.process.pid)
                pipe.known.add(block)
            outcomes = pipe.connection.recv()
        except (EOFError, OSError) as error:
            with _JOINING:
                pipe.process.join(5)
            raise WorkerFailed(f"a decoding process ended (exit code {pipe.process.exitcode})") from error
        finally:
            self._free.put(pipe)
        if isinstance(outcomes, Exception):
            raise outcomes
        return outcomes

    def close(self) -> None:
        """End the workers, whatever they do; may be called again."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._own.close()


def _start(data: DataConfig, clip: ClipConfig, manifest: Manifest) -> tuple[SpawnProcess, list[Connection]]:
    """A worker and our ends of its pipes."""
    pipes = [_CONTEXT.Pipe() for _ in range(_PIPES)]
    theirs = [connection for _, connection in pipes]
    process = _CONTEXT.Process(target=_serve, args=(theirs, data, clip, manifest), name="clip-worker", daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)  # which the process inherits
    try:
        resource_tracker.ensure_running()  # multiprocessing's own helper; starting it unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for connection in theirs:
        connection.close()
    return process, [connection for connection, _ in pipes]


def _serve(connections: list[Connection], data: DataConfig, clip: ClipConfig, manifest: Manifest) -> None:
    """A worker: answers its pipes until the parent closes them or dies."""
    source = ShardSource(data, clip, manifest)
    blocks: dict[int, np.ndarray] = {}
    with suppress(EOFError, OSError):
        while True:
            for connection in wait(connections):
                assert isinstance(connection, Connection)
                task: _Task = connection.recv()
                for block, shape, is_new, kind in zip(*task[1:], (np.uint8, np.float16), strict=False):
                    if is_new:
                        blocks[block] = _receive(connection, shape, np.dtype(kind))
                connection.send(_answer(source, task.wanted, [blocks[block] for block in task.blocks]))


def map_block(file: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A block of shared memory as an array; it stays when the file is closed."""
    return np.frombuffer(mmap.mmap(file, 0), dtype).reshape(shape)


def _receive(connection: Connection, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    file = recv_handle(connection)
    try:
        return map_block(file, shape, dtype)
    finally:
        os.close(file)


def _answer(source: ShardSource, wanted: list[ClipRequest], arrays: list[np.ndarray]) -> object:
    try:
        return source.decode_into(wanted, arrays[0], arrays[1] if len(arrays) > 1 else None)
    except UserError as error:
        return error
    except Exception:  # a bug: the loader's traceback would not show where
        return WorkerFailed(f"in a decoding process:\n{traceback.format_exc()}")

"""Decode in worker processes. Threads of one process would wait for the GIL about seventy times per clip.

Each worker is a new process (spawn). It opens the shards itself, does not import torch, and decodes directly into the
shared memory of the batch. The training process exchanges only two short messages per part of a micro-batch.
"""

import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from motionmae.data.clip_decoder import ClipRequest, SampleDecoder
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shared_buffers import SharedBuffer, map_block
from motionmae.errors import UserError
from motionmae.process_signals import KEPT_FROM_CHILDREN, start_children_without_signals

_CONTEXT = multiprocessing.get_context("spawn")
_PIPES = 2
"""Pipes per worker. The worker decodes for one pipe while it reads the frames of the other's request."""
_JOIN_LOCK = threading.Lock()
"""Lock to join a process: if two threads join the same process at the same time, one does not get the exit code."""


class WorkerFailed(RuntimeError):  # noqa: N818 - names an event
    """A worker process ended, or raised an unexpected exception."""


class _Task(NamedTuple):
    """Request from the training process to a worker: clips to decode, and buffers for the decoded clips."""

    requests: list[ClipRequest]
    handles: list[int]  # handles of the buffer for clips and, if requested, of the buffer for optical flow
    shapes: list[tuple[int, ...]]
    new: list[bool]
    """For each buffer, whether the file descriptor that the worker must map follows this message."""


class _Pipe(NamedTuple):
    """The training process's end of a pipe to a worker."""

    process: SpawnProcess
    connection: Connection
    known: set[int]  # handles of buffers that the worker has mapped through this pipe


class WorkerDecoder:
    """:class:`motionmae.data.clip_decoder.ClipDecoder` that decodes in worker processes.

    Each worker calls ``open_decoder``. This process calls it once too, to raise UserError if a shard is missing.
    """

    def __init__(self, open_decoder: Callable[[], SampleDecoder], workers: int):
        self.threads = _PIPES * workers
        self._local = open_decoder()
        self.reader = self._local.reader
        self._free: SimpleQueue[_Pipe] = SimpleQueue()
        started = [_start(open_decoder) for _ in range(workers)]
        self._processes = [process for process, _ in started]
        for number in range(_PIPES):  # the first pipes of all workers come before their second pipes
            for process, connections in started:
                self._free.put(_Pipe(process, connections[number], set()))

    def decode_into(
        self, requests: Sequence[ClipRequest], clips: SharedBuffer, flows: SharedBuffer | None
    ) -> list[SampleMeta | CorruptSample]:
        """Decode in a free worker process. Raises WorkerFailed if it was killed, usually for lack of memory."""
        buffers = [clips] if flows is None else [clips, flows]
        handles, shapes = [one.handle for one in buffers], [one.array.shape for one in buffers]
        pipe = self._free.get()
        try:
            new = [handle not in pipe.known for handle in handles]
            pipe.connection.send(_Task(list(requests), handles, shapes, new))
            for handle in itertools.compress(handles, new):
                send_handle(pipe.connection, handle, pipe.process.pid)
                pipe.known.add(handle)
            outcomes = pipe.connection.recv()
        except (EOFError, OSError) as error:
            with _JOIN_LOCK:
                pipe.process.join(5)
            raise WorkerFailed(f"a decoding process ended with exit code {pipe.process.exitcode}") from error
        finally:
            self._free.put(pipe)
        if isinstance(outcomes, Exception):
            raise outcomes
        return outcomes

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._local.close()


def _start(open_decoder: Callable[[], SampleDecoder]) -> tuple[SpawnProcess, list[Connection]]:
    """Start a worker. Return its process and the training process's ends of its pipes."""
    pipes = [_CONTEXT.Pipe() for _ in range(_PIPES)]
    worker_ends = [connection for _, connection in pipes]
    process = _CONTEXT.Process(target=_serve, args=(worker_ends, open_decoder), name="clip-worker", daemon=True)
    with start_children_without_signals():
        resource_tracker.ensure_running()  # started first, because its start unblocks two of the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, KEPT_FROM_CHILDREN)
        process.start()
    for connection in worker_ends:
        connection.close()
    return process, [connection for connection, _ in pipes]


def _serve(connections: list[Connection], open_decoder: Callable[[], SampleDecoder]) -> None:
    """Answer requests until the training process closes the pipes or ends (main function of a worker).

    A thread per pipe: one reads, perhaps from a slow disk, while another decodes.
    """
    decoder = open_decoder()
    decoder.turn = threading.Lock()  # threads that decode at the same time would wait for the GIL again and again
    threads = [threading.Thread(target=_answer, args=(connection, decoder)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _answer(connection: Connection, decoder: SampleDecoder) -> None:
    """Answer the requests of one pipe."""
    buffers: dict[int, SharedBuffer] = {}
    with suppress(EOFError, OSError):
        while True:
            task: _Task = connection.recv()
            for handle, shape, is_new, kind in zip(*task[1:], (np.uint8, np.float16), strict=False):
                if is_new:
                    file = recv_handle(connection)
                    buffers[handle] = SharedBuffer(map_block(file, shape, np.dtype(kind)), handle)
                    os.close(file)
            connection.send(_decode(decoder, task.requests, *(buffers[handle] for handle in task.handles)))


def _decode(
    decoder: SampleDecoder, requests: list[ClipRequest], clips: SharedBuffer, flows: SharedBuffer | None = None
) -> object:
    """Return the results of :meth:`ClipDecoder.decode_into`, or an exception to raise in the training process."""
    try:
        return decoder.decode_into(requests, clips, flows)
    except UserError as error:
        return error
    except Exception:  # a bug: the traceback of the training process would not show the place
        return WorkerFailed(f"in a decoding process:\n{traceback.format_exc()}")

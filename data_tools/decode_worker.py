"""Decode videos in a child process that can be killed, because a video may hang or crash the decoder.

The parent sends a path, and the child answers with the messages of decode_in_chunks, or with an UndecodableVideo. The
child holds a few megabytes of frames, and the parent keeps the frames of one sample in a FrameStore. While it decodes,
the child sends None as a heartbeat. Child processes are spawned, inherit nothing from the parent, and end when the
parent ends.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import cv2

from data_tools.decode import (
    DecodedVideo,
    Discard,
    FrameChunk,
    FrameSettings,
    Message,
    QuarantineReason,
    UndecodableVideo,
    decode_in_chunks,
)
from data_tools.frame_store import FrameStore
from motionmae.errors import UserError

_CONTEXT = multiprocessing.get_context("spawn")
_HEARTBEAT_SECONDS = 0.25
_START_SECONDS = 120.0


class WorkerStopped(Exception):  # noqa: N818 - names a request, not an error
    """Exception of :meth:`DecodeWorker.decode` after another thread has stopped the worker."""


class DecodeWorker:
    """Decoder of videos in a child process, which is killed after ``stall_timeout`` seconds without a frame.

    ``spool`` is the folder of the temporary files of large samples; None keeps all samples in memory.
    """

    def __init__(self, settings: FrameSettings, stall_timeout: float, spool: Path | None = None):
        self._settings = settings
        self._stall_timeout = stall_timeout
        self._spool = spool
        self._process: SpawnProcess | None = None
        self._connection: Connection
        self._lock = threading.Lock()
        self._stopping = False

    def decode(self, path: Path) -> Iterator[DecodedVideo]:
        """Decode a video, and yield each segment, or the whole video, when it is decoded.

        The frames of a yielded sample are gone when the next one is asked for.

        Raises:
            UndecodableVideo: no frame can be stored, or decoding stalled or crashed the process.
            UserError: the process cannot be started.
            OSError: the disk of ``spool`` is full or fails.
            WorkerStopped: :meth:`stop` was called.
        """
        connection = self._ready_connection()
        self._send(connection, path)
        jpegs, flows = FrameStore(self._spool), FrameStore(self._spool)
        is_whole = False
        try:
            while not is_whole:
                message = self._receive(connection)
                if isinstance(message, UndecodableVideo):
                    is_whole = True
                    raise message
                if isinstance(message, FrameChunk):
                    jpegs.extend(message.jpegs)
                    flows.extend(message.flows)
                    continue
                if isinstance(message, DecodedVideo):
                    is_whole = message.is_last
                    yield replace(message, jpegs=jpegs, flows=flows)
                jpegs.clear()
                flows.clear()
        finally:
            jpegs.clear()
            flows.clear()
            if not is_whole:  # the process is in the middle of a video, or has died
                self._kill(grace=0)

    def _send(self, connection: Connection, path: Path) -> None:
        try:
            connection.send(path)
        except OSError:
            raise self._crash() from None

    def _receive(self, connection: Connection) -> Message | UndecodableVideo:
        """Return the next message of the child that is not a heartbeat."""
        try:
            answer = None
            while answer is None and connection.poll(self._stall_timeout):
                answer = connection.recv()
        except (EOFError, OSError):  # OSError: the process died while it sent the answer
            raise self._crash() from None
        if answer is None:
            self._kill()
            self._check_stopped()
            detail = f"no frame for {self._stall_timeout:g} s: the decoding process was killed"
            raise UndecodableVideo(QuarantineReason.TIMEOUT, detail)
        assert isinstance(answer, FrameChunk | Discard | DecodedVideo | UndecodableVideo)
        return answer

    def _crash(self) -> UndecodableVideo:
        self._check_stopped()
        return UndecodableVideo(QuarantineReason.CRASHED, f"the decoding process died ({self._kill()})")

    def stop(self) -> None:
        """Kill the process. May be called from any thread; a blocked :meth:`decode` raises :class:`WorkerStopped`."""
        self._stopping = True
        self._kill(grace=0)

    def _check_stopped(self) -> None:
        if self._stopping:
            raise WorkerStopped

    def _ready_connection(self) -> Connection:
        """Return the connection to the process, after starting a process if none is running."""
        with self._lock:
            self._check_stopped()
            if self._process is not None:
                return self._connection
            self._connection, child = _CONTEXT.Pipe()
            self._process = _CONTEXT.Process(target=_serve, args=(child, self._settings), daemon=True)
            self._process.start()
            child.close()
        cause = f"no heartbeat for {_START_SECONDS:g} s"
        try:
            if self._connection.poll(_START_SECONDS):  # imports do not count towards the first video's stall timeout
                self._connection.recv()
                return self._connection
            self._kill(grace=0)
        except (EOFError, ConnectionError):
            cause = self._kill()
        self._check_stopped()
        raise UserError(f"a decoding process did not start ({cause}): check free memory, and run the command again")

    def _kill(self, grace: float = 0.2) -> str:
        """Kill the process. Return a text for messages that says how the process ended."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return "stopped"
        process.join(grace)  # a process that died by itself has an exit code to report
        code = process.exitcode
        process.kill()
        process.join(5)  # a process that still hangs in the kernel (dead network disk) is abandoned
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return f"exit status {code}"


def _serve(connection: Connection, settings: FrameSettings) -> None:
    """Decode the videos that the parent asks for, until the parent closes the connection."""
    cv2.setNumThreads(1)  # there is one process per core
    gc.freeze()  # makes the garbage collector skip imported modules, which saves 2 % of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes; the parent handles it
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    connection.send(None)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            _decode(connection, connection.recv(), settings)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode(connection: Connection, path: Path, settings: FrameSettings) -> None:
    """Send the samples of a video, and heartbeats meanwhile."""
    last = time.monotonic()

    def send_heartbeat() -> None:
        nonlocal last
        if time.monotonic() - last > _HEARTBEAT_SECONDS:
            connection.send(None)
            last = time.monotonic()

    try:
        for message in decode_in_chunks(path, settings, send_heartbeat):
            connection.send(message)
    except UndecodableVideo as error:
        connection.send(error)
    except ConnectionError:  # the parent has gone
        raise
    except Exception as error:  # quarantine the video instead of ending a run of days
        connection.send(UndecodableVideo(QuarantineReason.CRASHED, f"{type(error).__name__}: {error}"))

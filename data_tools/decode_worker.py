"""Decode videos in a child process that can be killed, because a video may hang or crash the decoder.

The parent sends a path, and the child answers with a DecodedVideo or an UndecodableVideo. While it decodes, the child
sends None as a heartbeat. Child processes are spawned, inherit nothing from the parent, and end when the parent ends.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import cv2

from data_tools.decode import DecodedVideo, FrameSettings, QuarantineReason, UndecodableVideo, decode_video
from motionmae.errors import UserError

_CONTEXT = multiprocessing.get_context("spawn")
_HEARTBEAT_SECONDS = 0.25
_START_SECONDS = 120.0


class WorkerStopped(Exception):  # noqa: N818 - names a request, not an error
    """Exception of :meth:`DecodeWorker.decode` after another thread has stopped the worker."""


class DecodeWorker:
    """Decoder of videos in a child process, which is killed after ``stall_timeout`` seconds without a frame."""

    def __init__(self, settings: FrameSettings, stall_timeout: float):
        self._settings = settings
        self._stall_timeout = stall_timeout
        self._process: SpawnProcess | None = None
        self._connection: Connection
        self._lock = threading.Lock()
        self._stopping = False

    def decode(self, path: Path) -> DecodedVideo:
        """Decode a video and block until it is decoded.

        Raises:
            UndecodableVideo: no frame can be stored, or decoding stalled or crashed the process.
            UserError: the process cannot be started.
            WorkerStopped: :meth:`stop` was called.
        """
        connection = self._ready_connection()
        try:
            connection.send(path)
            answer = None
            while answer is None and connection.poll(self._stall_timeout):
                answer = connection.recv()
        except (EOFError, OSError):  # OSError: the process died while it sent the answer
            self._check_stopped()
            detail = f"the decoding process died ({self._kill()})"
            raise UndecodableVideo(QuarantineReason.CRASHED, detail) from None
        if answer is None:
            self._kill()
            self._check_stopped()
            detail = f"no frame for {self._stall_timeout:g} s: the decoding process was killed"
            raise UndecodableVideo(QuarantineReason.TIMEOUT, detail)
        if isinstance(answer, UndecodableVideo):
            raise answer
        assert isinstance(answer, DecodedVideo)
        return answer

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
            connection.send(_decode(connection, connection.recv(), settings))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode(connection: Connection, path: Path, settings: FrameSettings) -> DecodedVideo | UndecodableVideo:
    last = time.monotonic()

    def send_heartbeat() -> None:
        nonlocal last
        if time.monotonic() - last > _HEARTBEAT_SECONDS:
            connection.send(None)
            last = time.monotonic()

    try:
        return decode_video(path, settings, send_heartbeat)
    except UndecodableVideo as error:
        return error
    except Exception as error:  # quarantine the video instead of ending a run of days
        return UndecodableVideo(QuarantineReason.CRASHED, f"{type(error).__name__}: {error}")

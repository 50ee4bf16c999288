"""A decoding process that can be killed: a video may hang or crash it, and costs only itself.

The parent sends a path, the process answers with the frames. It gives a sign of life while frames come; where none
comes for the time limit it is killed, and the next video gets a new one. It is started afresh (spawn), holds nothing
of the parent, and ends when the parent does.
"""

import gc
import json
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import cv2

from data_tools.decode import Decoded, FrameSettings, Reason, Undecodable, decode_video
from motionmae.errors import UserError

_CONTEXT = multiprocessing.get_context("spawn")
_ALIVE, _DECODED, _UNDECODABLE = b"alive", b"decoded", b"undecodable"
_BEAT_SECONDS = 0.25
_START_SECONDS = 120.0


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The worker was stopped from another thread."""


class DecodeWorker:
    """Decodes one video at a time in a process of its own.

    Args:
        settings: which frames, and how.
        patience: seconds without a frame after which a video is given up.
    """

    def __init__(self, settings: FrameSettings, patience: float):
        self._settings = settings
        self._patience = patience
        self._process: SpawnProcess | None = None
        self._connection: Connection
        self._lock = threading.Lock()
        self._stopping = False

    def decode(self, path: Path) -> Decoded:
        """Decode a video; blocks.

        Raises:
            Undecodable: nothing could be stored of it, it took too long, or it crashed the process.
            UserError: there is no process to decode it.
            Stopped: :meth:`stop` was called.
        """
        connection = self._ready()
        try:
            connection.send_bytes(os.fsencode(path))
            while True:
                if not connection.poll(self._patience):
                    self._kill()
                    self._check_stopped()
                    raise Undecodable(Reason.TIMEOUT, f"no frame for {self._patience:g} s: the decoder was killed")
                kind = connection.recv_bytes()
                if kind == _DECODED:
                    return Decoded.unpack(connection.recv_bytes)
                if kind == _UNDECODABLE:
                    answer = json.loads(connection.recv_bytes())
                    raise Undecodable(Reason(answer["reason"]), answer["detail"])
        except (EOFError, ConnectionError):
            self._check_stopped()
            raise Undecodable(Reason.CRASHED, f"the decoding process died ({self._kill()})") from None

    def stop(self) -> None:
        """End the process, whatever it does, from any thread; a waiting :meth:`decode` raises :class:`Stopped`."""
        self._stopping = True
        self._kill(grace=0)

    def _check_stopped(self) -> None:
        if self._stopping:
            raise Stopped

    def _ready(self) -> Connection:
        with self._lock:
            self._check_stopped()
            if self._process is not None:
                return self._connection
            self._connection, theirs = _CONTEXT.Pipe()
            self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._settings), daemon=True)
            self._process.start()
            theirs.close()
        how = f"no sign of life for {_START_SECONDS:g} s"
        try:
            if self._connection.poll(_START_SECONDS):  # importing is not the first video's time
                self._connection.recv_bytes()
                return self._connection
            self._kill(grace=0)
        except (EOFError, ConnectionError):
            how = self._kill()
        self._check_stopped()
        raise UserError(f"a decoding process did not start ({how}): see that it has memory, and run the command again")

    def _kill(self, grace: float = 0.2) -> str:
        """End the process, and say how it ended."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return "stopped"
        process.join(grace)  # one that died by itself gets to say how
        code = process.exitcode
        process.kill()
        process.join(5)  # one that hangs in the kernel (a dead network disk) is left to it
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return f"exit status {code}"


def _serve(connection: Connection, settings: FrameSettings) -> None:
    """The decoding process: paths in, frames out, until the parent closes the connection or dies."""
    cv2.setNumThreads(1)  # a process a core
    gc.freeze()  # modules are no garbage: looking through them takes 2 % of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection.send_bytes(_ALIVE)
    while True:
        try:
            path = Path(os.fsdecode(connection.recv_bytes()))
            messages = _answer(connection, path, settings)
            for message in messages:
                connection.send_bytes(message)
        except (EOFError, ConnectionError):
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(connection: Connection, path: Path, settings: FrameSettings) -> tuple[bytes, ...]:
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > _BEAT_SECONDS:
            connection.send_bytes(_ALIVE)
            last = time.monotonic()

    try:
        return (_DECODED, *decode_video(path, settings, beat).pack())
    except Undecodable as error:
        reason, detail = error.reason, error.detail
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # one video must not end a run of days; the quarantine names it
        reason, detail = Reason.CRASHED, f"{type(error).__name__}: {error}"
    return _UNDECODABLE, json.dumps({"reason": reason.value, "detail": detail}).encode()

"""Download of the files of a remote folder of shards (http, https, s3, gs, az) with fsspec.

Failures:

- No connection, a timeout, a broken connection, or HTTP 408, 425, 429 or 5xx: the download is retried after 1, 2, 4,
  ... seconds. After ``data.remote_retries`` retries without a byte of progress, UnreachableError is raised.
- No access, or another HTTP status from 400 to 499: UserError is raised at once.
- Content that differs from the manifest: the whole file is downloaded once more, then CorruptSample is raised.
- A file that does not exist: FileNotFoundError is raised at once.
- A compressed file, one that is too long, or one that arrives too slowly: an error is raised. At most the expected
  number of bytes is stored.
"""

import asyncio
import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from motionmae.config import DataConfig
from motionmae.data.remote.file_systems import (
    OBJECT_STORES,
    check_url,
    describe,
    is_bad_request,
    is_connection_error,
    is_refusal,
    open_file_system,
    status_of,
)
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry
from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError
from motionmae.text import get_logger

logger = get_logger(__name__)

FIRST_DELAY = 1.0
"""Seconds before the first retry. The delay doubles with each retry, up to :data:`LONGEST_DELAY`."""
LONGEST_DELAY = 60.0

_TIME_FACTOR = 10.0  # a request may take this many times data.remote_timeout, plus the time of its bytes
_POLL_SECONDS = 0.1  # interval between checks whether a running request is cancelled
_SLOWEST = 64 << 10  # bytes per second of a shard
_RANGE_BYTES = 16 << 20  # bytes per range request to an object store

Result = TypeVar("Result")


class UnreachableError(UserError):
    """The server failed at all retries. A later try, or a try from another machine, may succeed."""


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Raise UserError for errors of the disk that holds the cache ``folder``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be written ({error.strerror}): free space, decrease data.cache_gb, or set "
            "data.cache to a folder on another disk"
        ) from error


@dataclass
class _Sink:
    """Destination of the content of a download."""

    store: Callable[[bytes], object]
    room: int  # bytes that may still arrive
    refuse: Callable[[str], Exception]  # makes the error for content that does not fit
    cancelled: threading.Event

    def write(self, data: bytes) -> None:
        if self.cancelled.is_set():
            raise CancelledError
        if len(data) > self.room:
            raise self.refuse("it is longer than it may be")
        self.room -= len(data)
        self.store(data)


def _append(file: io.FileIO, folder: Path, data: bytes) -> None:
    """Append to the unbuffered ``file`` in the cache ``folder``."""
    rest = memoryview(data)
    with explain_disk_errors(folder):
        while rest:
            rest = rest[file.write(rest) :]


class RemoteFolder:
    """Folder of shards at a URL. Safe to use from several threads.

    Raises UserError if the URL is invalid or the packages that its scheme needs are missing.
    """

    def __init__(self, url: str, data: DataConfig):
        check_url(url)
        self.location = url.rstrip("/")
        self._scheme = urlsplit(url).scheme
        self._retries = data.remote_retries
        self._seconds = _TIME_FACTOR * data.remote_timeout
        self._fs = open_file_system(self._scheme, data.remote_timeout)
        self.closed = threading.Event()
        """Event that makes running downloads, and waits before a retry, raise CancelledError."""
        # atexit.register would be too late: the interpreter first waits for threads, which may wait for a download
        threading._register_atexit(self.closed.set)  # type: ignore[attr-defined]

    def address(self, name: str) -> str:
        return f"{self.location}/{name}"

    def read(self, name: str, limit: int) -> bytes:
        """Read a document of at most ``limit`` bytes. Raises InvalidJsonError if it is larger or compressed."""

        def attempt() -> bytes:
            content = bytearray()
            sink = _Sink(content.extend, limit, InvalidJsonError, self.closed)
            with self._time_limit(name, self._seconds) as seconds:
                if self._scheme in OBJECT_STORES:
                    sink.write(self._read_range(name, 0, limit + 1, seconds))
                else:
                    self._wait(self._fetch(self.address(name), {}, sink), seconds)
            return bytes(content)

        return self._retry(name, attempt)

    def download(self, entry: ShardEntry, file: io.FileIO, folder: Path) -> None:
        """Download a shard into the unbuffered ``file`` in ``folder``, continuing after the bytes already in the file.

        Raises CorruptSample if two downloads of the shard are truncated or differ from ``entry``.
        """
        for restart in (False, True):
            try:
                append = partial(self._append_rest, entry, file, folder, restart)
                self._retry(entry.name, append, lambda: 100 * file.seek(0, os.SEEK_END) // entry.bytes)
                file.seek(0)
                if (found := hashlib.file_digest(file, "sha256").hexdigest()) != entry.sha256:
                    detail = f"its sha256 is {found}, the manifest says {entry.sha256}"
                    raise self._wrong(entry.name, Reason.REPLACED_SHARD, detail)
                return
            except CorruptSample as fault:  # also raised if a server answers a range request with the whole shard
                file.truncate(0)
                if restart:
                    raise
                logger.info("%s; downloading the shard again from the start", fault)

    def _wrong(self, name: str, reason: Reason, detail: str) -> CorruptSample:
        return CorruptSample(reason, name, f"{self.address(name)}: {detail}")

    def _append_rest(self, entry: ShardEntry, file: io.FileIO, folder: Path, restart: bool) -> None:
        if restart:
            file.truncate(0)
        start = file.seek(0, os.SEEK_END)
        refuse = partial(self._wrong, entry.name, Reason.REPLACED_SHARD)
        if start > entry.bytes:
            raise refuse("it is longer than the manifest says")
        if start == entry.bytes:
            return
        sink = _Sink(partial(_append, file, folder), entry.bytes - start, refuse, self.closed)
        with self._time_limit(entry.name, self._seconds + sink.room / _SLOWEST) as seconds:
            if self._scheme in OBJECT_STORES:
                self._append_ranges(entry, sink, seconds)
            else:
                headers = {"Range": f"bytes={start}-"} if start else {}
                self._wait(self._fetch(self.address(entry.name), headers, sink), seconds)
        if sink.room:
            detail = f"it ends {sink.room} bytes before the {entry.bytes} bytes in the manifest"
            raise self._wrong(entry.name, Reason.TRUNCATED_SHARD, detail)

    def _append_ranges(self, entry: ShardEntry, sink: _Sink, seconds: float) -> None:
        while sink.room:
            low = entry.bytes - sink.room
            high = min(low + _RANGE_BYTES, entry.bytes)
            content = self._read_range(entry.name, low, high, seconds)
            sink.write(content)
            if len(content) < high - low:
                break

    def _read_range(self, name: str, low: int, high: int, seconds: float) -> bytes:
        """Read the bytes from ``low`` to ``high`` of an object, fewer at its end."""
        return self._wait(self._fs._cat_file(self.address(name), start=low, end=high), seconds)

    def _wait(self, request: Coroutine[Any, Any, Result], seconds: float) -> Result:
        """Run a request in fsspec's thread and return its result. Raises CancelledError soon after ``closed`` is set.

        A wait without this check, as in fsspec.asyn.sync, lasts until a server that stalls is given up.
        """
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(request, seconds), self._fs.loop)
        try:
            while not wait([future], _POLL_SECONDS).done:
                if self.closed.is_set():
                    raise CancelledError
            return future.result()
        except asyncio.CancelledError:  # asyncio makes it of the CancelledError of _Sink
            raise CancelledError from None
        finally:
            future.cancel()

    async def _fetch(self, address: str, headers: dict[str, str], sink: _Sink) -> None:
        """Send a GET request, and write the content to ``sink``."""
        session = await self._fs.set_session()
        # with compression, a range would refer to compressed bytes
        headers = {"Accept-Encoding": "identity", **headers}
        request = session.get(self._fs.encode_url(address), headers=headers)
        async with request as answer:
            if answer.status == 404:
                raise FileNotFoundError(address)
            answer.raise_for_status()
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise sink.refuse("the server sends it compressed, although identity encoding was asked for")
            async for data in answer.content.iter_any():
                sink.write(data)

    @contextlib.contextmanager
    def _time_limit(self, name: str, seconds: float) -> Iterator[float]:
        """Yield ``seconds``. Raise UnreachableError, which is not retried, if a timeout shows that they have passed."""
        started = time.monotonic()
        try:
            yield seconds
        except TimeoutError as error:
            if time.monotonic() - started < seconds:
                raise
            raise UnreachableError(
                f"{self.address(name)} did not arrive within {seconds:.0f} s: check the server and the network, or "
                "increase data.remote_timeout"
            ) from error

    def _retry(self, name: str, attempt: Callable[[], Result], progress: Callable[[], int] = int) -> Result:
        """Call ``attempt`` until it succeeds, with the retries in the module docstring, and return its result.

        ``progress`` returns the percentage downloaded. If it has grown, the count of failures restarts at 0.
        """
        failures, farthest = 0, progress()
        while True:
            if self.closed.is_set():
                raise CancelledError
            try:
                return attempt()
            except FileNotFoundError:
                raise
            except Exception as error:
                if self.closed.is_set():
                    raise CancelledError from error
                self._raise_permanent(name, error)
                last = error
            if (held := progress()) > farthest:
                failures, farthest = 0, held
            failures += 1
            fault = describe(last)
            if failures > self._retries:
                raise UnreachableError(
                    f"{self.address(name)} could not be read in {failures} tries, the last error was {fault}: check "
                    "the server, the network and data.remote_timeout, then start again"
                ) from last
            logger.warning("%s: %s; retrying", self.address(name), fault)
            self.pause(failures - 1)

    def pause(self, retry: int) -> None:
        """Wait before retry number ``retry`` (from 0), twice as long each time. Raises CancelledError if closed."""
        if self.closed.wait(min(FIRST_DELAY * 2**retry, LONGEST_DELAY)):
            raise CancelledError

    def _raise_permanent(self, name: str, error: Exception) -> None:
        """Raise UserError if the server refuses permanently, or ``error`` if it is not a connection error."""
        if status_of(error) == 416:
            detail = "it is now shorter than the bytes in the cache"
            raise self._wrong(name, Reason.TRUNCATED_SHARD, detail) from error
        if is_refusal(error):
            raise UserError(
                f"no access to {self.address(name)} ({describe(error)}): check this machine's credentials"
            ) from error
        if is_bad_request(error):
            answer = f"HTTP {status_of(error)}" if status_of(error) else describe(error)
            raise UserError(f"the server answered {self.address(name)} with {answer}: check the URL") from error
        if not is_connection_error(error):
            raise error

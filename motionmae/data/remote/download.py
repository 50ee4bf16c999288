"""Download the files of a remote folder of shards over http(s) or s3 with fsspec. Failures are handled as follows.

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
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import fsspec

from motionmae.config import DataConfig
from motionmae.config.data import REMOTE_SCHEMES
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
_CONNECTIONS = 100  # most at the same time, as for http; the default of botocore is 10
_TEMPORARY_STATUS = (408, 425, 429)  # HTTP client errors that may be temporary
_TRANSPORT = ("aiohttp", "aiobotocore", "asyncio", "botocore", "fsspec")
"""Packages whose exceptions are connection errors."""

Result = TypeVar("Result")


class UnreachableError(UserError):
    """The server failed at all retries. A later try, or a try from another machine, may succeed."""


def is_remote(folder: Path | str) -> bool:
    return "://" in str(folder)


def check_url(url: str) -> None:
    """Raise UserError if a URL is not the plain address of a folder.

    Other schemes are rejected because some schemes of fsspec run programs, user names because URLs are written to logs
    and run folders, and queries because file names are appended to URLs.
    """
    parts = urlsplit(url)
    if parts.scheme not in REMOTE_SCHEMES:
        raise UserError(f"shards cannot be read from {url}: give a folder, or a URL of {', '.join(REMOTE_SCHEMES)}")
    if not parts.netloc:
        raise UserError(f"the shard URL {url} has no host or bucket: write {parts.scheme}://NAME/FOLDER")
    if "@" in parts.netloc:
        raise UserError(
            f"the URL of shards at {parts.hostname} holds a user name, and URLs are written to logs: put the user name "
            "into ~/.netrc (http) or the AWS_* environment (s3)"
        )
    if parts.query or parts.fragment:
        raise UserError(
            f"the URL of shards at {parts.hostname} ends in a query or fragment: give the plain address of the folder"
        )


def _file_system(scheme: str, timeout: float) -> Any:
    """Create an fsspec file system that does not retry, and fails after ``timeout`` seconds without data."""
    try:
        if scheme == "s3":
            settings = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
            settings["max_pool_connections"] = _CONNECTIONS
            system = fsspec.filesystem("s3", config_kwargs=settings, use_listings_cache=False, skip_instance_cache=True)
            system.retries = 1
            return system
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
        # auto_decompress: a few compressed bytes could unpack to gigabytes; trust_env: proxies and ~/.netrc are used
        options = {"timeout": limits, "auto_decompress": False, "trust_env": True}
        return fsspec.filesystem(scheme, client_kwargs=options, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(
            f"reading {scheme}:// shards needs extra packages ({error}): pip install 'motionmae[remote]'"
        ) from error


def open_stream(location: str, timeout: float = 30.0) -> BinaryIO:
    """Open a local file or a URL, to be read once from front to back. No location can run a program.

    Raises UserError for a scheme or a form that :func:`check_url` refuses, and the errors of fsspec.
    """
    if not is_remote(location):
        return Path(location).open("rb")
    check_url(location)
    scheme = urlsplit(location).scheme
    block = 0 if scheme.startswith("http") else _RANGE_BYTES  # 0: one request, also for servers without ranges
    return cast(BinaryIO, _file_system(scheme, timeout).open(location, "rb", block_size=block))


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
        self._fs = _file_system(self._scheme, data.remote_timeout)
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
                if self._scheme == "s3":
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
            if self._scheme == "s3":
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
            fault = " ".join(f"{type(last).__name__}: {last}".removesuffix(": ").split())
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
        status = getattr(error, "status", 0)
        if status == 416:
            detail = "it is now shorter than the bytes in the cache"
            raise self._wrong(name, Reason.TRUNCATED_SHARD, detail) from error
        no_credentials = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
        if isinstance(error, PermissionError) or status in (401, 403) or no_credentials:
            detail = " ".join(str(error).split())
            raise UserError(
                f"no access to {self.address(name)} ({detail}): check this machine's credentials"
            ) from error
        if status and 400 <= status < 500 and status not in _TEMPORARY_STATUS:
            raise UserError(f"the server answered {self.address(name)} with HTTP {status}: check the URL") from error
        package = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and package not in _TRANSPORT:
            raise error

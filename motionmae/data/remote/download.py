"""Bring the files of a remote folder of shards over http(s) or s3: retried, resumed, held against the manifest.

fsspec does the talking; no scheme that could run a program is let through. What a failure leads to:

- no connection, a time-out, a connection cut off, an answer of 408, 425, 429 or 5xx: tried again after 1, 2, 4, ...
  seconds, ``data.remote_retries`` times without a byte of progress, then :class:`UnreachableError`;
- no access, or any other refusal: UserError at once;
- content that is not what the manifest names: once more from its first byte, then CorruptSample;
- no such file: FileNotFoundError at once.
"""

import io
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec

from motionmae.config import DataConfig
from motionmae.config.data import REMOTE_SCHEMES
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, sha256_of
from motionmae.errors import UserError

logger = logging.getLogger(__name__)

FIRST_DELAY = 1.0
"""Seconds before the first repetition; doubled each time, up to :data:`LONGEST_DELAY`."""
LONGEST_DELAY = 60.0

_RANGE_BYTES = 16 << 20  # of one request to an object store
_MAY_PASS = (408, 425, 429)  # client errors that another try may mend
_TRANSPORT = (
    "aiohttp",
    "aiobotocore",
    "asyncio",
    "botocore",
    "fsspec",
)  # packages whose own exceptions speak of the connection

Result = TypeVar("Result")


class UnreachableError(UserError):
    """The remote side did not answer well within the retries; the same may work later or from another machine."""


def is_remote(source: Path | str) -> bool:
    """Whether shards lie behind a URL; everything else is a folder."""
    return "://" in str(source)


def check_url(url: str) -> None:
    """Refuse a URL that is no plain address of a folder.

    Raises:
        UserError: another scheme than http, https and s3 (``pipe:`` and its like would run programs), a password or
            a query in it (it is written to logs and run folders, and file names are appended to it).
    """
    parts = urlsplit(url)
    if parts.scheme not in REMOTE_SCHEMES:
        raise UserError(f"shards cannot be read from {url}: give a folder, or a URL of {', '.join(REMOTE_SCHEMES)}")
    if not parts.netloc:
        raise UserError(f"the URL of shards {url} names no host or bucket: write {parts.scheme}://NAME/FOLDER")
    if "@" in parts.netloc:
        raise UserError(
            f"the URL of shards at {parts.hostname} holds a user name, and URLs are written to logs: put it into "
            "~/.netrc (http) or the AWS_* environment (s3)"
        )
    if parts.query or parts.fragment:
        raise UserError(f"the URL of shards {url} ends in a query or fragment: give the plain address of the folder")


def _file_system(scheme: str, timeout: float) -> Any:
    """An fsspec file system of its own, which gives up after ``timeout`` seconds of silence and never repeats."""
    try:
        if scheme == "s3":
            settings = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
            system = fsspec.filesystem("s3", config_kwargs=settings, use_listings_cache=False, skip_instance_cache=True)
            system.retries = 1
            return system
        import aiohttp

        silence = aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
        options = {"timeout": silence, "trust_env": True}  # proxies and ~/.netrc, as other programs
        return fsspec.filesystem(scheme, client_kwargs=options, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(
            f"shards behind {scheme}:// need further packages ({error}): pip install 'motionmae[remote]'"
        ) from error


class _Spoiled(Exception):  # noqa: N818 - becomes a CorruptSample when it happens again
    """What was brought is not what the manifest names."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


class _Sink(io.RawIOBase):
    """Where a transfer puts its bytes: at the end of a file, not beyond what was asked for."""

    def __init__(self, file: BinaryIO, path: Path, room: int, closed: threading.Event):
        self.file, self.path, self.room, self.stopped = file, path, room, closed

    def write(self, data: Any) -> int:
        if self.stopped.is_set():
            raise CancelledError
        if len(data) > self.room:
            raise _Spoiled(Reason.REPLACED_SHARD, "it is longer than the manifest says")
        self.room -= len(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise UserError(
                f"{self.path.parent} takes no more ({error.strerror}): free space there, lower data.cache_gb, or set "
                "data.cache to a folder on another disk"
            ) from error
        return len(data)


class RemoteFolder:
    """A folder of shards behind a URL. Safe to use from several threads.

    Args:
        url: of the folder.
        data: retries and time-out.

    Raises:
        UserError: the URL is refused, or the packages of its scheme are missing.
    """

    def __init__(self, url: str, data: DataConfig):
        check_url(url)
        self.url = url.rstrip("/")
        self._scheme = urlsplit(url).scheme
        self._retries = data.remote_retries
        self._fs = _file_system(self._scheme, data.remote_timeout)
        self.closed = threading.Event()
        """Set: transfers under way and waits for a repetition end with CancelledError."""

    def address(self, name: str) -> str:
        """URL of a file of the folder."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        """A whole small file.

        Raises:
            FileNotFoundError: it is not there.
            UserError: no access, or the remote side fails for good.
        """
        return self.retry(name, lambda: self._fs.cat_file(self.address(name)))

    def fetch(self, entry: ShardEntry, file: BinaryIO, path: Path) -> None:
        """Bring a shard, going on where the content of ``file`` (``path``, unbuffered) ends.

        Raises:
            CorruptSample: the remote shard is not the one the manifest names.
            FileNotFoundError: it is not there.
            UserError: no access, the remote side fails for good, or the disk is full.
        """
        for resume in (True, False):
            try:
                self.retry(entry.name, lambda: self._continue(entry, file, path, resume), lambda: file.seek(0, 2))  # noqa: B023
                file.seek(0)
                if (found := sha256_of(file)) != entry.sha256:
                    raise _Spoiled(Reason.REPLACED_SHARD, f"sha256 is {found}, the manifest says {entry.sha256}")
                return
            except _Spoiled as fault:  # also where a server answered the rest of a file with the whole of it
                file.truncate(0)
                logger.info("%s: %s; %s", self.address(entry.name), fault, "from the start" if resume else "given up")
                if not resume:
                    raise CorruptSample(fault.reason, entry.name, f"{self.address(entry.name)}: {fault}") from fault

    def _continue(self, entry: ShardEntry, file: BinaryIO, path: Path, resume: bool) -> None:
        if not resume:
            file.truncate(0)
        start = file.seek(0, os.SEEK_END)
        if start > entry.bytes:
            raise _Spoiled(Reason.REPLACED_SHARD, "more was kept of it than the manifest says")
        if start == entry.bytes:
            return
        sink = _Sink(file, path, entry.bytes - start, self.closed)
        address = self.address(entry.name)
        if self._scheme == "s3":
            while sink.room:
                low = entry.bytes - sink.room
                high = min(low + _RANGE_BYTES, entry.bytes)
                if sink.write(self._fs.cat_file(address, start=low, end=high)) < high - low:
                    break
        else:
            span = {"Range": f"bytes={start}-"} if start else {}
            # compressed on the way, a range would be one of other bytes
            self._fs.get_file(address, sink, headers={"Accept-Encoding": "identity", **span})
        if sink.room:
            raise _Spoiled(Reason.TRUNCATED_SHARD, f"it ends {sink.room} bytes before the manifest's {entry.bytes}")

    def retry(self, name: str, attempt: Callable[[], Result], progress: Callable[[], int] = int) -> Result:
        """The result of ``attempt``, repeated as the policy of this module says.

        Args:
            name: of the file.
            attempt: the work.
            progress: bytes held; as long as they grow, failures do not add up.

        Raises:
            UnreachableError: too many failures.
            UserError: a failure that no repetition mends.
        """
        failures, farthest = 0, progress()
        while True:
            if self.closed.is_set():
                raise CancelledError
            try:
                return attempt()
            except (FileNotFoundError, UserError):
                raise
            except Exception as error:
                self._refuse_lasting(name, error)
                last = error
            if (held := progress()) > farthest:
                failures, farthest = 0, held
            failures += 1
            fault = f"{type(last).__name__}: {last}" if str(last) else type(last).__name__
            fault = " ".join(fault.split())
            if failures > self._retries:
                raise UnreachableError(
                    f"{self.address(name)} could not be read in {failures} tries, the last ended with {fault}: check "
                    "the server, the network and data.remote_timeout, then start again"
                ) from last
            logger.warning("%s: %s; trying again", self.address(name), fault)
            self.pause(failures - 1)

    def pause(self, repetition: int) -> None:
        """Wait before a repetition (from 0), twice as long each time.

        Raises:
            CancelledError: the folder was closed.
        """
        if self.closed.wait(min(FIRST_DELAY * 2**repetition, LONGEST_DELAY)):
            raise CancelledError

    def _refuse_lasting(self, name: str, error: Exception) -> None:
        """Raise what another try would not mend: a refusal as UserError, what is no fault of the transport as it is."""
        status = getattr(error, "status", 0)
        if status == 416:
            raise _Spoiled(Reason.TRUNCATED_SHARD, "more was kept of it than it holds now") from error
        no_credentials = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
        if isinstance(error, PermissionError) or status in (401, 403) or no_credentials:
            detail = " ".join(str(error).split())
            raise UserError(
                f"no access to {self.address(name)} ({detail}): check the credentials of this machine"
            ) from error
        if status and 400 <= status < 500 and status not in _MAY_PASS:
            raise UserError(f"{self.address(name)} is refused with HTTP status {status}: check the URL") from error
        package = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError | TimeoutError) and package not in _TRANSPORT:
            raise error

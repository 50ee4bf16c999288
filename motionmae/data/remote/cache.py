"""Remote shards on the node's own disk: fetched once a node, kept up to a limit, never taken from under a reader.

The folder (mode 0700) is shared by all ranks of a node, and by other runs of the same user::

    DIGEST-train-000000.tar               a shard, complete and checked; DIGEST stands for its full URL and checksums
    DIGEST-train-000000.idx.json          its index
    DIGEST-train-000001.tar.8123904.part  a shard of 8,123,904 bytes under way, or left by a killed process
    .lock                                 held while room is made

Processes meet through flock, which ends with its holder. A ``.part`` is locked by the one who downloads it, and
renamed when its sha256 is right; others wait for the lock and then find the shard. A reader holds a shared lock on the
shard it has open; only a file that can be locked exclusively is removed, so one in use never is. Age is the file's
time of modification, set anew when it is opened or asked for ahead of time.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import math
import os
import re
import shutil
import stat
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from motionmae.config import DataConfig
from motionmae.data.remote.download import RemoteFolder
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, index_path, parse_index, shard_is_complete
from motionmae.errors import UserError
from motionmae.files import sync_folder, write_atomically

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}\.tar")
_OURS = re.compile(r"(?P<stem>[0-9a-f]{32}-.+)(?P<kind>\.tar|\.tar\.(?P<bytes>\d+)\.part|\.idx\.json(\.tmp)?)")
_SLACK = 1.02  # indexes beside the shards
_POLL = 0.1  # seconds between looks at a lock: waiting in flock itself could not be called off


class CacheFullError(UserError):
    """No room for a shard; it may come when a reader lets go of another."""


class _NoRoomError(OSError):
    """No room now."""


@dataclass(frozen=True)
class _Kept:
    """One file of the cache."""

    path: Path
    stem: str
    bytes: int
    """What it takes; a ``.part`` what it will."""
    used: float
    """When it was last used, seconds."""
    is_index: bool


def default_folder() -> Path:
    """Where the cache is when ``data.cache`` is empty: one folder a user and node."""
    return Path(tempfile.gettempdir()) / f"motionmae-cache-{os.getuid()}"


def _private_folder(path: Path) -> Path:
    """Create the cache folder, or make sure that nobody else could have put files there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise UserError(f"the cache {path} cannot be created ({error.strerror}): set data.cache=FOLDER") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"the cache {path} is no folder of yours that only you can write to: chmod go-w it, or set data.cache"
        )
    return path


class ShardCache:
    """The shards of one remote folder, by way of the node's disk. Safe from several threads and processes.

    Args:
        url: of the folder of shards.
        data: cache folder and limit, retries, time-out.

    Raises:
        UserError: the URL or the cache folder is refused.
    """

    def __init__(self, url: str, data: DataConfig):
        self.remote = RemoteFolder(url, data)
        self.limit = int(data.cache_gb * 1e9)
        self.folder = _private_folder(
            Path(os.path.expandvars(data.cache)).expanduser() if data.cache else default_folder()
        )
        self._retries = data.remote_retries
        self._readers = max(1, data.workers)
        self._faults: dict[str, CorruptSample] = {}

    def close(self) -> None:
        """End transfers under way; what they have brought stays for the next run."""
        self.remote.closed.set()

    def open(self, entry: ShardEntry) -> tuple[Path, BinaryIO]:
        """A shard's path in the cache, its index beside it, and the shard opened; fetched first where need be.

        As long as the file is open the shard is not removed.

        Raises:
            CorruptSample: the remote shard is missing, or not the one that the manifest names.
            UserError: the remote side fails for good, the disk is full, or shards in use fill the cache.
        """
        path = self._path(entry)
        while (file := self._open_shared(path, entry)) is None:
            self._ensure_cached(path, entry, wait=True)
        return path, file

    def prefetch(self, entry: ShardEntry, spared: Sequence[ShardEntry] = ()) -> None:
        """Have a shard in the cache, and as fresh as if used now; leave it to another process that is fetching it.

        Args:
            entry: the shard.
            spared: shards that do not make way for it, used lately or not.

        Raises:
            CorruptSample, UserError: as :meth:`open`; CacheFullError at once and not after some patience.
        """
        path = self._path(entry)
        if (file := self._open_shared(path, entry)) is not None:
            file.close()
        else:
            self._ensure_cached(path, entry, wait=False, spared={self._path(one).stem for one in spared})

    def require_room(self, shards: Sequence[ShardEntry], shuffle_window_shards: int, ahead: int) -> None:
        """Refuse a limit that would have shards fetched again and again within an epoch.

        Args:
            shards: all of them.
            shuffle_window_shards: shards whose samples are mixed.
            ahead: positions of the order that may be under way at a time.

        Raises:
            UserError: the windows that are read at a time, two at least, do not fit.
        """
        of_an_epoch = math.ceil(len(shards) / shuffle_window_shards)
        shortest = len(shards) // of_an_epoch  # shards of a window, see EpochSampler
        smallest_first = list(accumulate(sorted(shard.samples for shard in shards)))
        held = bisect_left(smallest_first, ahead) + 1  # at most so many shards hold what is under way
        windows = min(1 + math.ceil(held / shortest), of_an_epoch)
        sizes = sorted((shard.bytes for shard in shards), reverse=True)
        needed = _SLACK * sum(sizes[: windows * shuffle_window_shards])
        if needed > self.limit:
            raise UserError(
                f"data.cache_gb={self.limit / 1e9:g} is too small for {self.remote.url}: {windows} windows of "
                f"data.shuffle_window_shards={shuffle_window_shards} take {needed / 1e9:.3g}; raise the one or lower the other"
            )

    def most_open(self, shards: Sequence[ShardEntry], wanted: int) -> int:
        """How many shards, at most ``wanted``, one reader may keep open and so keep from making way."""
        if _SLACK * sum(shard.bytes for shard in shards) <= self.limit:
            return wanted
        most = self.limit // (2 * max(shard.bytes for shard in shards))
        return max(1, min(wanted, most // self._readers))

    def _path(self, entry: ShardEntry) -> Path:
        if not _NAME.fullmatch(entry.name):
            raise UserError(f"the manifest of {self.remote.url} names a shard {entry.name!r}: make the shards again")
        identity = f"{self.remote.address(entry.name)}\n{entry.sha256}\n{entry.index_sha256}"
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return self.folder / f"{digest[:32]}-{entry.name}"

    def _open_shared(self, path: Path, entry: ShardEntry) -> BinaryIO | None:
        """The kept shard, opened and locked against removal; None if it is not there, or no longer."""
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        status = os.fstat(file.fileno())
        if status.st_nlink and shard_is_complete(path, entry):
            os.utime(file.fileno())
            return file
        if status.st_nlink:  # cut short by a crash of the machine, or its index was damaged
            path.unlink(missing_ok=True)
        file.close()
        return None

    def _ensure_cached(self, path: Path, entry: ShardEntry, wait: bool, spared: Set[str] = frozenset()) -> None:
        """Fetch a shard unless another process does (``wait``: until it has), or has done so meanwhile."""
        if known := self._faults.get(path.name):
            raise CorruptSample(known.reason, known.where, known.detail)
        part = path.with_name(f"{path.name}.{entry.bytes}.part")
        with self._lock_partial(part, wait) as file:
            if file is None:
                return
            try:
                if not path.exists():
                    self._download(path, part, file, entry, self._retries if wait else 0, spared)
            except CorruptSample as fault:
                self._faults[path.name] = fault
                file.truncate(0)
                raise
            finally:
                if part.exists() and (path.exists() or os.fstat(file.fileno()).st_size == 0):
                    part.unlink()

    @contextlib.contextmanager
    def _lock_partial(self, part: Path, wait: bool) -> Iterator[BinaryIO | None]:
        """The ``.part`` of a shard, locked for this thread; None if another has it, or had it while this one waited."""
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            while not _locks(file):
                if not wait or not _is(part, file):  # renamed, and held open by readers from now on
                    yield None
                    return
                if self.remote.closed.wait(_POLL):
                    raise CancelledError
            yield file if _is(part, file) else None

    def _download(
        self, path: Path, part: Path, file: BinaryIO, entry: ShardEntry, retries: int, spared: Set[str]
    ) -> None:
        index = index_path(path)
        try:
            # the index first: it tells a replaced shard before its many bytes are fetched
            content = self._read_index(entry)
            self._make_room(part, index, content, retries, spared)
            self.remote.fetch(entry, file, part)
        except FileNotFoundError as error:
            detail = f"{self.remote.address(entry.name)} or its index does not exist"
            raise CorruptSample(Reason.MISSING_SHARD, entry.name, detail) from error
        try:
            os.fsync(file.fileno())
            part.rename(path)
            sync_folder(self.folder)
        except OSError as error:
            raise UserError(f"the cache {self.folder} failed ({error.strerror}): mend it or set data.cache") from error

    def _read_index(self, entry: ShardEntry) -> bytes:
        """The remote index of a shard, held against the manifest; read once more if it is another."""
        name = index_path(Path(entry.name)).name
        for last in (False, True):
            content = self.remote.read(name)
            try:
                parse_index(self.remote.address(name), content, entry)
                break
            except CorruptSample:
                if last:
                    raise
        return content

    def _make_room(self, part: Path, index: Path, content: bytes, retries: int, spared: Set[str]) -> None:
        """Remove the least recently used until ``part`` fits in limit and disk, then write its index."""
        for attempt in range(retries + 1):
            try:
                with (self.folder / ".lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    self._evict(part, len(content), spared)
                    write_atomically(index, content)
                    return
            except _NoRoomError as error:
                if attempt == retries:
                    raise CacheFullError(
                        f"the cache {self.folder} has no room for {part.name} ({error}): raise data.cache_gb, lower "
                        "data.shuffle_window_shards, or set data.cache to a folder of this run's own"
                    ) from error
            except OSError as error:
                raise UserError(
                    f"the cache {self.folder} takes no more ({error.strerror}): free space there or set data.cache"
                ) from error
            self.remote.pause(attempt)

    def _evict(self, part: Path, index_bytes: int, spared: Set[str]) -> None:
        kept = self._kept()
        total = sum(one.bytes for one in kept) + index_bytes  # ``part`` is among them
        reserved = next(one.bytes for one in kept if one.path == part)
        missing = reserved - part.stat().st_size + index_bytes
        alive = {one.stem for one in kept if not one.is_index}
        orphans = [one for one in kept if one.is_index and one.stem not in alive]
        shards = sorted(
            (one for one in kept if not one.is_index and one.path != part and one.stem not in spared),
            key=lambda one: one.used,
        )
        indexes = {one.stem: one for one in kept if one.is_index}
        for one in [*orphans, *shards]:
            free = shutil.disk_usage(self.folder).free
            if total <= self.limit and missing <= free:
                return
            if one.is_index:
                one.path.unlink(missing_ok=True)
            elif not _remove_unused(one.path, self.folder / f"{one.stem}.idx.json"):
                continue
            total -= one.bytes
            if not one.is_index and one.stem in indexes:
                total -= indexes[one.stem].bytes
            logger.info("removed %s from the cache to make room", one.path.name)
        free = shutil.disk_usage(self.folder).free
        if total > self.limit:
            raise _NoRoomError(
                errno.EDQUOT, f"shards in use and under way take {total / 1e9:.3g} of {self.limit / 1e9:g} GB"
            )
        if missing > free:
            raise _NoRoomError(errno.ENOSPC, f"it takes {missing / 1e9:.3g} GB and the disk has {free / 1e9:.3g} free")

    def _kept(self) -> list[_Kept]:
        found = []
        for path in self.folder.iterdir():
            name = _OURS.fullmatch(path.name)
            with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                if name:
                    status = path.stat()
                    size = int(name["bytes"] or status.st_size)
                    found.append(_Kept(path, name["stem"], size, status.st_mtime, ".idx.json" in name["kind"]))
        return found


def _locks(file: BinaryIO) -> bool:
    """Lock a file exclusively, unless another has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _is(path: Path, file: BinaryIO) -> bool:
    """Whether ``file`` still is what ``path`` names."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    return False


def _remove_unused(path: Path, index: Path) -> bool:
    """Remove a shard or ``.part`` and its index, unless some process has it locked."""
    try:
        with path.open("rb") as file:
            if not _locks(file):
                return False
            path.unlink()
            index.unlink(missing_ok=True)
            return True
    except FileNotFoundError:
        return False

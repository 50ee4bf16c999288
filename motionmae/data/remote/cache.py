"""Cache of remote shards on the node's local disk. Each node downloads a shard once; open shards are never evicted.

All ranks of a node and all runs of the same user share the cache folder (mode 0700)::

    DIGEST-train-000000.tar               a shard, complete and checked; DIGEST hashes its URL and checksums
    DIGEST-train-000000.idx.json          its index
    DIGEST-train-000001.tar.8123904.part  a shard of 8,123,904 bytes in download, or left by a killed process
    .lock                                 locked while shards are evicted

The process that downloads a ``.part`` file locks the file, and renames it when its sha256 is right. Other processes
wait for the lock and then find the shard. A reader holds a shared lock on each open shard. Eviction removes only files
that it can lock exclusively, and therefore no shard in use. The mtime of a shard is the time of its last use.
"""

import contextlib
import hashlib
import math
import os
import shutil
import stat
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import CancelledError
from io import FileIO
from itertools import accumulate
from pathlib import Path

from motionmae.config import DataConfig
from motionmae.config.text_types import node_path
from motionmae.data.remote.cached_files import SHARD_NAME, Kind, remove_unused, scan
from motionmae.data.remote.download import RemoteFolder, explain_disk_errors
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, check_size, index_path, load_index, parse_index
from motionmae.data.shards.reader import OpenedShard
from motionmae.data.shards.schema import index_limit
from motionmae.errors import UserError
from motionmae.files import sync, write_atomically
from motionmae.json_text import InvalidJsonError
from motionmae.locks import acquire
from motionmae.text import get_logger

logger = get_logger(__name__)

_SLACK = 1.02  # factor for the size of the indexes
_POLL_SECONDS = 0.1  # interval between attempts to lock, because a blocking flock cannot be cancelled


class CacheFullError(UserError):
    """The cache has no room for a shard until a reader closes another shard."""


def default_folder() -> Path:
    """Return the cache folder of the user on this node, for runs without ``data.cache``."""
    return Path(tempfile.gettempdir()) / f"motionmae-cache-{os.getuid()}"


def _private_folder(path: Path) -> Path:
    """Create the cache folder. Raise UserError if the folder exists and other users can write to it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise UserError(f"the cache {path} cannot be created ({error.strerror}): set data.cache=FOLDER") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"the cache {path} is not a folder that only you can write to: run chmod go-w, or set data.cache=FOLDER"
        )
    return path


class ShardCache:
    """:class:`motionmae.data.shards.reader.ShardStore` of a URL. Safe to use from several threads and processes."""

    def __init__(self, url: str, data: DataConfig):
        self.remote = RemoteFolder(url, data)
        self.location = self.remote.location
        self.limit = int(data.cache_gb * 1e9)
        folder = node_path(data.cache) if data.cache else default_folder()
        self.folder = _private_folder(folder)
        self._retries = data.remote_retries
        self._readers = max(1, data.workers)
        self._faults: dict[str, CorruptSample] = {}

    def close(self) -> None:
        self.remote.closed.set()

    def most_open(self, shards: Sequence[ShardEntry], requested: int) -> int:
        """Return how many shards a reader may keep open, at most ``requested``: open shards cannot be evicted."""
        if _SLACK * sum(shard.bytes for shard in shards) <= self.limit:
            return requested
        most = self.limit // (2 * max(shard.bytes for shard in shards))
        return max(1, min(requested, most // self._readers))

    def open(self, entry: ShardEntry) -> OpenedShard:
        """Open a shard, after downloading it if the cache lacks it.

        Raises CorruptSample if the remote shard is missing or differs from ``entry``. Raises UserError if the server
        fails, the disk is full, or shards in use fill the cache.
        """
        path = self._path(entry)
        while (opened := self._open_shared(path, entry)) is None:
            self._ensure_cached(path, entry, wait=True)
        return opened

    def prefetch(self, entry: ShardEntry, protected: Sequence[ShardEntry] = ()) -> None:
        """Download a shard unless another process is downloading it, and mark the shard as just used.

        The shards in ``protected`` are not evicted. Raises the errors of :meth:`open`, but CacheFullError without
        retries.
        """
        path = self._path(entry)
        if (opened := self._open_shared(path, entry)) is not None:
            opened.file.close()
        else:
            self._ensure_cached(path, entry, wait=False, protected={self._path(one).stem for one in protected})

    def room_for(self, shards: Sequence[ShardEntry], shuffle_window_shards: int, in_flight: int) -> float:
        """Return the bytes that the shuffle windows in use at the same time take, at least two.

        ``in_flight`` is the maximum distance between shuffle indices in use at the same time.
        """
        windows_per_epoch = math.ceil(len(shards) / shuffle_window_shards)
        smallest_window = len(shards) // windows_per_epoch  # shards in the smallest shuffle window, see EpochSampler
        smallest_first = list(accumulate(sorted(shard.samples for shard in shards)))
        shards_in_flight = bisect_left(smallest_first, in_flight) + 1
        windows = min(1 + math.ceil(shards_in_flight / smallest_window), windows_per_epoch)
        sizes = sorted((shard.bytes for shard in shards), reverse=True)
        return _SLACK * sum(sizes[: windows * shuffle_window_shards])

    def require_room(self, needed: float, shuffle_window_shards: int) -> None:
        """Raise UserError if the cache is too small for ``needed`` bytes, to download each shard once per epoch."""
        if needed > self.limit:
            raise UserError(
                f"data.cache_gb={self.limit / 1e9:g} is too small for {self.location}, because the windows of "
                f"data.shuffle_window_shards={shuffle_window_shards} in use take {needed / 1e9:.3g} GB: increase "
                "data.cache_gb or decrease data.shuffle_window_shards"
            )

    def _path(self, entry: ShardEntry) -> Path:
        if not SHARD_NAME.fullmatch(entry.name):
            raise UserError(
                f"the manifest of {self.location} has a shard with the invalid name {entry.name!r}: make the shards "
                "again"
            )
        identity = f"{self.remote.address(entry.name)}\n{entry.sha256}\n{entry.index_sha256}"
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return self.folder / f"{digest[:32]}-{entry.name}"

    def _open_shared(self, path: Path, entry: ShardEntry) -> OpenedShard | None:
        """Open a cached shard with a shared lock, which prevents eviction. Return None if the shard is not cached."""
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        acquire(file, shared=True, timeout=None)
        if os.fstat(file.fileno()).st_nlink:  # no links: the file was removed before it was locked
            try:
                _, columns = load_index(path, entry)
                check_size(path, entry)
                os.utime(file.fileno())
                return OpenedShard(file, columns)
            except CorruptSample:  # a crash of the node truncated the shard or damaged its index
                path.unlink(missing_ok=True)
        file.close()
        return None

    def _ensure_cached(self, path: Path, entry: ShardEntry, wait: bool, protected: Set[str] = frozenset()) -> None:
        """Download a shard that is not cached. ``wait``: wait for another process that is downloading the shard."""
        if known := self._faults.get(path.name):
            raise CorruptSample(*known.args)
        part = path.with_name(f"{path.name}.{entry.bytes}.part")
        with self._lock_partial(part, wait) as file:
            if file is None:
                return
            try:
                if not path.exists():
                    self._download(path, part, file, entry, self._retries if wait else 0, protected)
            except CorruptSample as fault:
                self._faults[path.name] = fault
                file.truncate(0)
                raise
            finally:
                if part.exists() and (path.exists() or os.fstat(file.fileno()).st_size == 0):
                    part.unlink()

    @contextlib.contextmanager
    def _lock_partial(self, part: Path, wait: bool) -> Iterator[FileIO | None]:
        """Lock the ``.part`` file of a shard. Yield None if another process has the lock or has renamed the file."""
        with explain_disk_errors(self.folder):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            while not acquire(file):
                if not wait or not _is_same_file(part, file):  # not the same: it was renamed, and readers now lock it
                    yield None
                    return
                if self.remote.closed.wait(_POLL_SECONDS):
                    raise CancelledError
            yield file if _is_same_file(part, file) else None

    def _download(
        self, path: Path, part: Path, file: FileIO, entry: ShardEntry, retries: int, protected: Set[str]
    ) -> None:
        try:
            index = self._read_index(entry)  # read first, because it shows whether the remote shard was replaced
            self._make_room(part, entry, index_path(path), index, retries, protected)
            self.remote.download(entry, file, self.folder)
        except FileNotFoundError as error:
            detail = f"{self.remote.address(entry.name)} or its index does not exist"
            raise CorruptSample(Reason.MISSING_SHARD, entry.name, detail) from error
        with explain_disk_errors(self.folder):
            os.fsync(file.fileno())
            part.rename(path)
            sync(self.folder)

    def _read_index(self, entry: ShardEntry) -> bytes:
        """Read a remote index, a second time if its checksum differs from the manifest."""
        try:
            return self._read_index_once(entry)
        except CorruptSample:
            return self._read_index_once(entry)

    def _read_index_once(self, entry: ShardEntry) -> bytes:
        name = index_path(Path(entry.name)).name
        address = self.remote.address(name)
        try:
            content = self.remote.read(name, index_limit(entry.samples))
        except InvalidJsonError as error:
            raise CorruptSample(Reason.BAD_INDEX, entry.name, f"{address} is not a shard index ({error})") from error
        parse_index(address, content, entry)
        return content

    def _make_room(
        self, part: Path, entry: ShardEntry, index: Path, content: bytes, retries: int, protected: Set[str]
    ) -> None:
        """Evict shards until ``part`` fits, then write its index."""
        for attempt in range(retries + 1):
            with explain_disk_errors(self.folder), self._lock_file() as lock:
                acquire(lock, timeout=None)
                problem = self._evict(part, entry.bytes, len(content), protected)
                if not problem:
                    write_atomically(index, content)
                    return
            if attempt < retries:
                self.remote.pause(attempt)
        raise CacheFullError(
            f"the cache {self.folder} has no room for {part.name} ({problem}): increase data.cache_gb, decrease "
            "data.shuffle_window_shards, or set data.cache to a folder that no other run uses"
        )

    @contextlib.contextmanager
    def _lock_file(self) -> Iterator[int]:
        """Open the file ``.lock``. An existing file of this name is not changed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.folder / ".lock", flags, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _evict(self, part: Path, part_bytes: int, index_bytes: int, protected: Set[str]) -> str:
        """Evict the least recently used shards until ``part`` and its index fit in the cache limit and on the disk.

        Return an empty string, or the reason why they cannot fit.
        """
        while True:
            files = scan(self.folder)
            total = sum(one.bytes for one in files) + index_bytes  # ``files`` includes ``part``
            missing = part_bytes - part.stat().st_size + index_bytes
            free = shutil.disk_usage(self.folder).free
            if total <= self.limit and missing <= free:
                return ""
            stems = {one.stem for one in files if one.kind in (Kind.SHARD, Kind.PART)}
            removable = [one for one in files if one.path != part and one.stem not in protected]
            useless = [one for one in files if one.kind is Kind.LEFTOVER]
            useless += [one for one in files if one.kind is Kind.INDEX and one.stem not in stems]
            shards = [one for one in removable if one.kind in (Kind.SHARD, Kind.PART)]
            if any(map(remove_unused, [*useless, *sorted(shards, key=lambda one: one.used)])):
                continue
            if total > self.limit:
                return f"shards in use and in download take {total / 1e9:.3g} of {self.limit / 1e9:g} GB"
            return f"it takes {missing / 1e9:.3g} GB and the disk has {free / 1e9:.3g} GB free"


def _is_same_file(path: Path, file: FileIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False

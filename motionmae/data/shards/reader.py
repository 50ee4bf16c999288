"""Read samples from shards: index entries and single frames, without reading whole shards.

Shards are opened at their first use, and the least recently used shards are closed. Reads are ``pread`` calls, which
are thread-safe. A read from a file that is being truncated raises an error, whereas a memory map would kill the process
with SIGBUS.
"""

import itertools
import os
import threading
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, check_size, load_index
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.schema import SampleFacts
from motionmae.errors import UserError
from motionmae.json_text import JSON_LIMIT, InvalidJsonError, parse_json


class OpenedShard(NamedTuple):
    """Open shard that matches its manifest entry."""

    file: BinaryIO
    """Unbuffered file. The store does not delete the shard until the file is closed."""
    columns: dict[str, list[Any]]
    """Columns of the index, see :func:`motionmae.data.shards.format.parse_index`."""


class ShardStore(Protocol):
    """Local or remote folder of shards. Safe to use from several threads."""

    location: str  # path or URL, without a trailing slash

    def open(self, entry: ShardEntry) -> OpenedShard:
        """Open a shard and its index. Raises CorruptSample if one of them is missing or differs from ``entry``."""

    def close(self) -> None:
        """Cancel downloads. May be called more than once."""


class LocalFolder:
    """:class:`ShardStore` of a folder on a file system of this machine. Raises UserError if ``shards`` are missing."""

    def __init__(self, folder: Path, shards: Sequence[ShardEntry]):
        self.location = str(folder)
        self._folder = folder
        present = {path.name for path in folder.iterdir()}
        missing = [shard.name for shard in shards if shard.name not in present]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(shards)} shards in the manifest of {folder} are missing, the first is "
                f"{missing[0]}: copy them again, or run make_shards again to write them"
            )

    def open(self, entry: ShardEntry) -> OpenedShard:
        path = self._folder / entry.name
        _, columns = load_index(path, entry)
        check_size(path, entry)
        try:
            return OpenedShard(path.open("rb", buffering=0), columns)
        except OSError as error:
            raise CorruptSample(Reason.UNREADABLE, entry.name, str(error)) from error

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class SampleMeta:
    """Index entry of a sample, with the values that determine possible frames and crops."""

    shard: str
    key: str
    label: int  # class number, -1 for none
    fps: float  # frames per second of the source video
    frames: int
    stride: int  # distance of stored frames, in source frames
    height: int  # height of a stored frame in pixels
    width: int  # width of a stored frame in pixels
    windows: tuple[int, ...]
    """First stored frame of each window. A clip never crosses the end of its window."""
    has_flow: bool  # whether optical flow is stored
    encoding: str = "jpeg"  # encoding of the frames, a key of motionmae.data.shards.format.ENCODINGS

    @property
    def where(self) -> str:
        return f"{self.shard}:{self.key}"


class _OpenShard:
    """Index and open file of one shard. The file is closed when the last reference to this object is gone."""

    def __init__(self, name: str, encoding: str, opened: OpenedShard):
        self.name, self.encoding = name, encoding
        self._file, columns = opened
        weakref.finalize(self, self._file.close)  # unlike __del__, runs before the file of a reference cycle is freed
        self._keys = columns["key"]
        self._windows = [tuple(windows) for windows in columns["windows"]]
        self._columns = {
            column: np.asarray(values) for column, values in columns.items() if column not in ("key", "windows")
        }

    def where(self, row: int) -> str:
        return f"{self.name}:{self._keys[row]}"

    def has_stride(self, stride: int) -> bool:
        return bool((self._columns["stride"] == stride).all())

    def value(self, column: str, row: int) -> Any:
        return self._columns[column][row].item()

    def meta(self, row: int) -> SampleMeta:
        numbers = {name: self.value(name, row) for name in ("label", "fps", "frames", "stride", "height", "width")}
        has_flow, windows = self.value("flow_size", row) > 0, self._windows[row]
        return SampleMeta(
            self.name, self._keys[row], windows=windows, has_flow=has_flow, encoding=self.encoding, **numbers
        )

    def read(self, row: int, offset: int, size: int) -> bytes:
        try:
            content = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise CorruptSample(Reason.UNREADABLE, self.where(row), str(error)) from error
        if len(content) != size:
            detail = f"the file ends within the {size} bytes at {offset}"
            raise CorruptSample(Reason.TRUNCATED_SHARD, self.where(row), detail)
        return content

    def read_ranges(self, row: int, member: str, header: np.ndarray, numbers: Sequence[int]) -> dict[int, memoryview]:
        """Read the frames ``numbers`` of a packed member with the offsets ``header``, adjacent frames in one read."""
        start, size = self.value(f"{member}_offset", row), self.value(f"{member}_size", row)
        offsets = header.tolist()
        frames: dict[int, memoryview] = {}
        runs = _runs(sorted(set(numbers)))
        with suppress(OSError):  # the kernel can queue all reads at once instead of one after the other
            for first, last in runs:
                low, high = offsets[first], offsets[last + 1]
                os.posix_fadvise(self._file.fileno(), start + low, max(1, high - low), os.POSIX_FADV_WILLNEED)
        for first, last in runs:
            bounds = offsets[first : last + 2]
            if sorted(bounds) != bounds or bounds[-1] > size:
                detail = f"the frame offsets of KEY.{member} do not increase: {bounds}"
                raise CorruptSample(Reason.CHECKSUM, self.where(row), detail)
            content = self.read(row, start + bounds[0], bounds[-1] - bounds[0])
            if first == last:
                frames[first] = memoryview(content)
                continue
            for number, (low, high) in enumerate(itertools.pairwise(bounds), first):
                frames[number] = memoryview(content)[low - bounds[0] : high - bounds[0]]
        return frames


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last number of each run of consecutive numbers. ``numbers`` must increase."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


class ShardReader:
    """Reader of samples by their id, 0 to ``manifest.samples`` - 1. Opened by motionmae.data.open_shards.open_reader.

    The reader keeps at most ``open_shards`` shards open. An open shard takes a file descriptor and about 100 KB. The
    methods raise CorruptSample if a shard or a sample is missing, changed or damaged.
    """

    def __init__(self, store: ShardStore, manifest: Manifest, open_shards: int = 256):
        self.store, self.manifest = store, manifest
        self.folder = store.location
        self._starts = list(itertools.accumulate((shard.samples for shard in manifest.shards), initial=0))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._open_shards = open_shards
        self._lock = threading.Lock()

    def _find(self, sample_id: int) -> tuple[_OpenShard, int]:
        number = bisect_right(self._starts, sample_id) - 1
        if sample_id < 0 or number >= len(self.manifest.shards):
            raise UserError(
                f"sample {sample_id} does not exist: {self.folder} holds samples 0 to {self.manifest.samples - 1}"
            )
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
        if shard is None:
            shard = self._open_shard(self.manifest.shards[number])  # two threads may do so at once, which is harmless
            with self._lock:
                self._open[number] = shard
                while len(self._open) > self._open_shards:
                    self._open.popitem(last=False)
        return shard, sample_id - self._starts[number]

    def _open_shard(self, entry: ShardEntry) -> _OpenShard:
        encoder = self.manifest.encoder
        shard = _OpenShard(entry.name, encoder.encoding, self.store.open(entry))
        if not shard.has_stride(encoder.stride):
            detail = f"its index has another stride than the manifest, which says {encoder.stride}"
            raise CorruptSample(Reason.BAD_INDEX, entry.name, detail)
        return shard

    def keep_only(self, shards: Set[int]) -> None:
        """Close all shards except those with the given numbers, so that a full cache can evict the closed ones."""
        with self._lock:
            for number in self._open.keys() - shards:
                del self._open[number]

    def close(self) -> None:
        """Close all shards and cancel downloads."""
        self.keep_only(frozenset())
        self.store.close()

    def read_meta(self, sample_id: int) -> SampleMeta:
        shard, row = self._find(sample_id)
        return shard.meta(row)

    def read_json(self, sample_id: int) -> dict[str, Any]:
        """Read a sample's KEY.json, which has the source path and the frame times."""
        shard, row = self._find(sample_id)
        content = shard.read(row, shard.value("json_offset", row), min(shard.value("json_size", row), JSON_LIMIT + 1))
        try:
            return parse_json(content, SampleFacts).model_dump()
        except InvalidJsonError as error:
            raise CorruptSample(Reason.CHECKSUM, shard.where(row), f"KEY.json: {error}") from error

    def read_frames(self, sample_id: int, frame_indices: Sequence[int]) -> list[memoryview]:
        """Read stored frames in the order of ``frame_indices`` and check each against its crc32.

        Only the frame table and the byte ranges of these frames are read, a repeated frame once.
        """
        shard, row = self._find(sample_id)
        frames = shard.value("frames", row)
        start = shard.value("crcs_offset", row)
        # KEY.crcs lies directly before KEY.jpgs, so that one read gets checksums and offsets
        head = shard.read(row, start, shard.value("jpgs_offset", row) + 4 * (frames + 1) - start)
        checksums = np.frombuffer(head, "<u4", frames)
        offsets = np.frombuffer(head, "<u4", frames + 1, len(head) - 4 * (frames + 1))
        found = shard.read_ranges(row, "jpgs", offsets, frame_indices)
        for number, content in found.items():
            if zlib.crc32(content) != checksums[number]:
                raise CorruptSample(Reason.CHECKSUM, shard.where(row), f"frame {number} was changed")
        return [found[number] for number in frame_indices]

    def read_flow(self, sample_id: int, frame_indices: Sequence[int]) -> list[memoryview]:
        """Read stored flow fields in the order of ``frame_indices``. Raises UserError if the sample has none."""
        shard, row = self._find(sample_id)
        if shard.value("flow_size", row) == 0:
            raise UserError(f"{shard.where(row)} holds no optical flow: make the shards with --flow")
        head = shard.read(row, shard.value("flow_offset", row), 4 * (shard.value("frames", row) + 1))
        found = shard.read_ranges(row, "flow", np.frombuffer(head, "<u4"), frame_indices)
        return [found[number] for number in frame_indices]

"""Read samples out of a folder of shards: index entries, single frames, nothing more than asked for.

The folder may be a URL (motionmae.data.remote.cache); its shards are then opened in the node's cache.

Indexes and files are opened when first needed and the least recently used are closed, so that 20,000 shards cost no
more than the few in use. Reads are `pread` calls, safe from any thread; unlike a memory map, they answer a file that
shrinks under them with an error and not with a signal.
"""

import json
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from motionmae.config import DataConfig
from motionmae.data.remote.cache import ShardCache
from motionmae.data.remote.download import is_remote
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import ShardEntry, check_size, load_index
from motionmae.data.shards.manifest import Manifest, load_manifest
from motionmae.errors import UserError


@dataclass(frozen=True)
class SampleMeta:
    """What the index says of a sample: enough to choose frames and crop."""

    shard: str
    """Name of its shard."""
    key: str
    """Its key there."""
    label: int
    """Class number, -1 for none."""
    fps: float
    """Source frames a second."""
    frames: int
    """Stored frames."""
    stride: int
    """Distance of stored frames, in source frames."""
    height: int
    """Stored pixels."""
    width: int
    """Stored pixels."""
    windows: tuple[int, ...]
    """First stored frame of each window; a clip stays within one."""
    has_flow: bool
    """Whether optical flow is stored."""

    encoding: str = "jpeg"
    """How its frames are stored (motionmae.data.shards.format.ENCODINGS)."""

    @property
    def where(self) -> str:
        """Name for messages and logs."""
        return f"{self.shard}:{self.key}"


class _OpenShard:
    """One shard's index and file; closed when the last user lets go of it."""

    def __init__(self, encoding: str, entry: ShardEntry, path: Path, file: BinaryIO | None = None):
        if file is not None:
            self._file = file
        _, columns = load_index(path, entry)
        check_size(path, entry)
        self.name, self.encoding = entry.name, encoding
        self._texts = columns.pop("key")
        self._windows = [tuple(windows) for windows in columns.pop("windows")]
        self._columns = {name: np.asarray(column) for name, column in columns.items()}
        if file is None:
            try:
                self._file = path.open("rb", buffering=0)
            except OSError as error:
                raise CorruptSample(Reason.UNREADABLE, entry.name, str(error)) from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def value(self, column: str, row: int) -> Any:
        """One entry of the index as a Python number."""
        return self._columns[column][row].item()

    def meta(self, row: int) -> SampleMeta:
        numbers = {name: self.value(name, row) for name in ("label", "fps", "frames", "stride", "height", "width")}
        has_flow = self.value("flow_size", row) > 0
        return SampleMeta(
            shard=self.name,
            key=self._texts[row],
            windows=self._windows[row],
            has_flow=has_flow,
            encoding=self.encoding,
            **numbers,
        )

    def read(self, row: int, offset: int, size: int) -> bytes:
        try:
            content = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise CorruptSample(Reason.UNREADABLE, f"{self.name}:{self._texts[row]}", str(error)) from error
        if len(content) != size:
            detail = f"the file ends within the {size} bytes at {offset}"
            raise CorruptSample(Reason.TRUNCATED_SHARD, f"{self.name}:{self._texts[row]}", detail)
        return content

    def read_member(self, row: int, member: str) -> bytes:
        return self.read(row, self.value(f"{member}_offset", row), self.value(f"{member}_size", row))

    def read_ranges(self, row: int, member: str, header: np.ndarray, numbers: Sequence[int]) -> dict[int, memoryview]:
        """The frames ``numbers`` of a packed member, whose offsets are ``header``; neighbours in one read."""
        start, size = self.value(f"{member}_offset", row), self.value(f"{member}_size", row)
        offsets = header.tolist()
        frames: dict[int, memoryview] = {}
        runs = _runs(sorted(set(numbers)))
        with suppress(OSError):  # the disk gets all requests at once; one after the other they would wait in turn
            for first, last in runs:
                low, high = offsets[first], offsets[last + 1]
                os.posix_fadvise(self._file.fileno(), start + low, max(1, high - low), os.POSIX_FADV_WILLNEED)
        for first, last in runs:
            bounds = offsets[first : last + 2]
            if sorted(bounds) != bounds or bounds[-1] > size:
                detail = f"the table of frames of KEY.{member} does not rise: {bounds}"
                raise CorruptSample(Reason.CHECKSUM, f"{self.name}:{self._texts[row]}", detail)
            content = self.read(row, start + bounds[0], bounds[-1] - bounds[0])
            if first == last:
                frames[first] = memoryview(content)
                continue
            for number, (low, high) in enumerate(pairwise(bounds), first):
                frames[number] = memoryview(content)[low - bounds[0] : high - bounds[0]]
        return frames


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each row of consecutive numbers; the numbers rise."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


class ShardReader:
    """Samples of a folder of shards by their id, 0 to ``manifest.samples`` - 1.

    Args:
        folder: folder of shards, a path or a URL.
        manifest: what it holds; read from the folder by default.
        open_shards: most shards kept open at a time (a file descriptor and about 100 KB each).
        data: cache, retries and time-out of a URL.

    Raises:
        UserError: shards that the manifest names are not there, or a URL is of no use.
    """

    def __init__(
        self,
        folder: Path | str,
        manifest: Manifest | None = None,
        open_shards: int = 256,
        data: DataConfig | None = None,
    ):
        data = data or DataConfig()
        self.folder = str(folder) if is_remote(folder) else Path(folder)
        self.manifest = manifest or load_manifest(self.folder, data)
        self.cache: ShardCache | None = None
        self._starts = np.cumsum([0, *(shard.samples for shard in self.manifest.shards)])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._open_shards = open_shards
        self._lock = threading.Lock()
        if isinstance(self.folder, str):
            self.cache = ShardCache(self.folder, data)
            self._open_shards = self.cache.most_open(self.manifest.shards, open_shards)
            return
        present = {path.name for path in self.folder.iterdir()}
        missing = [shard.name for shard in self.manifest.shards if shard.name not in present]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.manifest.shards)} shards named by the manifest of {self.folder} are "
                f"missing, the first {missing[0]}: copy them again, or run make_shards again to fill the gaps"
            )

    def _find(self, sample_id: int) -> tuple[_OpenShard, int]:
        """The shard of a sample and its row there."""
        number = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        if sample_id < 0 or number >= len(self.manifest.shards):
            raise UserError(f"there is no sample {sample_id}: {self.folder} holds 0 to {self.manifest.samples - 1}")
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
        if shard is None:
            shard = self._open_shard(self.manifest.shards[number])  # two threads may both open it: harmless
            with self._lock:
                self._open[number] = shard
                while len(self._open) > self._open_shards:
                    self._open.popitem(last=False)
        return shard, sample_id - int(self._starts[number])

    def _open_shard(self, entry: ShardEntry) -> _OpenShard:
        encoding = self.manifest.encoder.encoding
        if self.cache:
            return _OpenShard(encoding, entry, *self.cache.open(entry))
        return _OpenShard(encoding, entry, Path(self.folder) / entry.name)

    def keep_only(self, shards: Set[int]) -> None:
        """Close every shard but these (their numbers in the manifest), so that a full cache can let go of the rest."""
        with self._lock:
            for number in self._open.keys() - shards:
                del self._open[number]

    def close(self) -> None:
        """Close all shards and end transfers under way."""
        self.keep_only(frozenset())
        if self.cache:
            self.cache.close()

    def read_meta(self, sample_id: int) -> SampleMeta:
        """What the index says of a sample.

        Raises:
            CorruptSample: its shard is missing, truncated or replaced, or its index unreadable.
        """
        shard, row = self._find(sample_id)
        return shard.meta(row)

    def read_json(self, sample_id: int) -> dict[str, Any]:
        """The whole KEY.json of a sample: source path, frame times and all.

        Raises:
            CorruptSample: it is not what was written.
        """
        shard, row = self._find(sample_id)
        try:
            return json.loads(shard.read_member(row, "json"))
        except ValueError as error:
            raise CorruptSample(Reason.CHECKSUM, shard.meta(row).where, f"KEY.json: {error}") from error

    def read_frames(self, sample_id: int, frame_indices: Sequence[int]) -> list[memoryview]:
        """The stored JPEGs of the asked frames, in the asked order; each is checked against its crc32.

        Reads the table of frames and the byte ranges of these frames only, a repeated frame once.

        Raises:
            CorruptSample: the bytes are not what was written.
        """
        shard, row = self._find(sample_id)
        frames = shard.value("frames", row)
        start = shard.value("crcs_offset", row)
        # KEY.crcs lies right before KEY.jpgs: checksums and offsets take one read
        head = shard.read(row, start, shard.value("jpgs_offset", row) + 4 * (frames + 1) - start)
        checksums = np.frombuffer(head, "<u4", frames)
        offsets = np.frombuffer(head, "<u4", frames + 1, len(head) - 4 * (frames + 1))
        found = shard.read_ranges(row, "jpgs", offsets, frame_indices)
        for number, content in found.items():
            if zlib.crc32(content) != checksums[number]:
                raise CorruptSample(Reason.CHECKSUM, shard.meta(row).where, f"frame {number} was changed")
        return [found[number] for number in frame_indices]

    def read_flow(self, sample_id: int, frame_indices: Sequence[int]) -> list[memoryview]:
        """The stored flow fields (motionmae.data.flow) of the asked frames, in the asked order.

        Raises:
            CorruptSample: the bytes are not what was written.
            UserError: the sample has none.
        """
        shard, row = self._find(sample_id)
        if shard.value("flow_size", row) == 0:
            raise UserError(f"{shard.meta(row).where} holds no optical flow: make the shards with --flow")
        head = shard.read(row, shard.value("flow_offset", row), 4 * (shard.value("frames", row) + 1))
        found = shard.read_ranges(row, "flow", np.frombuffer(head, "<u4"), frame_indices)
        return [found[number] for number in frame_indices]

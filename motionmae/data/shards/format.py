"""Format of shards on disk. Only this module knows the layout of the bytes.

A shard is a WebDataset tar (``NAME.tar``) of decoded videos, one sample per video or segment of it::

    KEY.crcs   u32 little-endian crc32 of each stored frame, so that a read of some frames can be checked
    KEY.jpgs   u32 little-endian offsets[T + 1] from the start of the member, then T JPEGs end to end
    KEY.rgbs   replaces KEY.jpgs in raw shards: offsets[T + 1], then T pictures of uint8 (height, width, 3)
    KEY.json   label, class name, source, fps, frames, stride, height, width, times (see :data:`META_KEYS`)
    KEY.flow   optional: offsets[T + 1] like KEY.jpgs, then T optical-flow fields (motionmae.data.flow)

The index ``NAME.idx.json`` beside the tar holds the offset and the size of each member, and the values that a loader
needs to cut a clip without KEY.json. A shard without its index is incomplete. The bytes of a shard depend only on the
samples: they contain no times, owners or host names.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.publish import current_index, index_path, publish, recover, temporary_path
from motionmae.data.shards.schema import (
    MAX_SAMPLES,
    FileBytes,
    IndexFile,
    Samples,
    Sha256,
    ShardName,
    Version,
    index_limit,
)
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, parse_json, read_limited

ENCODINGS = {"jpeg": "jpgs", "raw": "rgbs"}
"""Extension of the member that holds the frames, by their encoding. The columns of the index always say ``jpgs``."""

FORMAT_VERSION = 2
"""Version to increment if readers of the previous version would misread a shard. 2 added the sha256 of indexes."""

ORDER_VERSION = 1
"""Version to increment if motionmae.data.sampler gives a different order of samples for the same seed."""

META_KEYS = ("label", "class_name", "source", "fps", "frames", "stride", "height", "width", "times")
"""Keys of every KEY.json: class number (-1: none) and class name; path of the video within its data set; frames per
second of the video; number of stored frames, their distance in source frames, their size, their times in seconds."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_TAR_HEADER = tarfile.BLOCKSIZE
_WRITE_BYTES = 1 << 20
_MEMBERS = ("crcs", "jpgs", "json", "flow")
_COLUMNS = (
    *("key", "crc32", "label", "fps", "frames", "stride", "height", "width", "windows"),
    *(f"{member}_{what}" for member in _MEMBERS for what in ("offset", "size")),
)


@dataclass(frozen=True)
class ShardEntry:
    """Manifest entry of a shard."""

    name: ShardName  # file name within the folder, ``NAME.tar``
    sha256: Sha256  # sha256 of the tar
    bytes: FileBytes  # size of the tar
    samples: Samples
    index_sha256: Sha256  # sha256 of the index ``NAME.idx.json``


Part = bytes | memoryview  # of a member


def pack_frames(frames: Sequence[Part]) -> list[Part]:
    """Return the parts of a packed member: u32 offsets[T + 1] from the start of the member, then the T frames.

    The parts are not joined, because the copy would be large.
    """
    return [_offset_table([len(frame) for frame in frames]), *frames]


def _offset_table(sizes: Sequence[int]) -> bytes:
    offsets = [*itertools.accumulate(sizes, initial=4 * (len(sizes) + 1))]
    if offsets[-1] >= 2**32:
        raise UserError(f"a sample of {offsets[-1]} bytes exceeds the limit of 4 GiB: store fewer frames")
    return struct.pack(f"<{len(offsets)}I", *offsets)


class _Member(NamedTuple):
    """Content of a tar member. The parts are read once, because those of a long sample are in a file."""

    size: int
    parts: Iterable[bytes]


def _whole(content: bytes) -> _Member:
    return _Member(len(content), [content])


def _packed(frames: Iterable[bytes], sizes: Sequence[int]) -> _Member:
    table = _offset_table(sizes)
    return _Member(len(table) + sum(sizes), itertools.chain([table], frames))


class ShardWriter:
    """Writer of one shard. The complete shard appears at the end of the ``with`` block and replaces an older version.

    If the block raises an exception, the unfinished file is removed. After a kill, the old or the new shard is read,
    and the next writer of the same shard removes what is left (motionmae.data.shards.publish). ``encoding`` is a key of
    :data:`ENCODINGS`.

    Example::

        with ShardWriter(folder / "train-000000.tar") as shard:
            shard.write("00000000", jpegs, meta)
        shard.entry  # for the manifest
    """

    def __init__(self, path: Path, encoding: str = "jpeg"):
        if path.suffix != ".tar":
            raise UserError(f"the name of the shard {path} must end in .tar")
        self.path = path
        self.encoding = encoding
        self.entry: ShardEntry | None = None
        self._columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self._sha256 = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "ShardWriter":
        recover(self.path)  # what a killed writer left; a link of the temporary name would be written through
        self._file = temporary_path(self.path).open("xb", buffering=_WRITE_BYTES)
        return self

    def write(self, key: str, jpegs: Collection[bytes], meta: Mapping[str, Any], flow: Collection[bytes] = ()) -> None:
        """Append one sample.

        Args:
            key: unique in the shard; letters, digits, ``_`` and ``-`` (WebDataset cuts names at the first dot). Keys of
                make_shards are unique in their folder, and repeat in a merged one.
            jpegs: stored frames in order, at least one, all with the height and width in ``meta``.
            meta: all of :data:`META_KEYS` and optional further keys. If only some windows of a video are stored,
                ``windows`` lists the first frame of each (default ``[0]``). No clip crosses the end of a window.
            flow: one optical-flow field per frame (motionmae.data.flow.encode_flow), or empty.

        Raises UserError if the key, ``meta`` or the number of frames is invalid.
        """
        meta = {"windows": [0], **meta}
        self._check_sample(key, jpegs, meta, flow)
        sizes, checksums = zip(*((len(jpeg), zlib.crc32(jpeg)) for jpeg in jpegs), strict=True)
        members = {
            "crcs": _whole(struct.pack(f"<{len(jpegs)}I", *checksums)),
            "jpgs": _packed(jpegs, sizes),
            "json": _whole(json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()),
        }
        if flow:
            members["flow"] = _packed(flow, [len(field) for field in flow])
        self._append_sample(key, members, meta)

    def copy(self, key: str, members: Mapping[str, bytes], meta: Mapping[str, Any]) -> None:
        """Append a sample of another shard with all its bytes (motionmae.data.shards.stored_samples).

        Its checksums are not made again, so that damage to its frames stays known.
        """
        self._append_sample(key, {name: _whole(members[name]) for name in _MEMBERS if name in members}, meta)

    def flush(self) -> None:
        """Flush the samples to the disk. A full disk raises OSError here rather than at the end of the block."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _append_sample(self, key: str, members: Mapping[str, _Member], meta: Mapping[str, Any]) -> None:
        row = {name: meta[name] for name in ("label", "fps", "frames", "stride", "height", "width", "windows")}
        row |= {"key": key, "flow_offset": 0, "flow_size": 0}
        for suffix, member in members.items():
            stored_suffix = ENCODINGS[self.encoding] if suffix == "jpgs" else suffix
            row[f"{suffix}_offset"] = self._size + _TAR_HEADER
            row[f"{suffix}_size"] = member.size
            crc32 = self._append_member(f"{key}.{stored_suffix}", member)
            if suffix == "jpgs":
                row["crc32"] = crc32
        for name, column in self._columns.items():
            column.append(row[name])

    def _append(self, data: Part) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)

    def _append_member(self, name: str, member: _Member) -> int:
        """Write a tar member part by part, and return its crc32. ``TarFile`` would need a joined copy of the parts."""
        info = tarfile.TarInfo(name)  # the defaults are mtime 0 and no owner
        info.size, info.mode = member.size, 0o644
        self._append(info.tobuf(tarfile.USTAR_FORMAT))
        start, crc32 = self._size, 0
        for part in member.parts:
            self._append(part)
            crc32 = zlib.crc32(part, crc32)
        assert self._size - start == member.size, name
        self._append(bytes(-member.size % tarfile.BLOCKSIZE))
        return crc32

    def _check_sample(
        self, key: str, jpegs: Collection[bytes], meta: Mapping[str, Any], flow: Collection[bytes]
    ) -> None:
        missing = [name for name in META_KEYS if name not in meta]
        windows = meta["windows"]
        if not _KEY.fullmatch(key):
            raise UserError(f"the sample key {key!r} must have 1 to 80 letters, digits, '_' or '-'")
        if key in self._columns["key"]:
            raise UserError(f"the sample key {key!r} occurs twice in {self.path.name}: give each sample another key")
        if missing:
            raise UserError(f"the meta of sample {key} lacks {', '.join(missing)}: add these keys")
        if not jpegs or not len(jpegs) == meta["frames"] == len(meta["times"]):
            raise UserError(
                f"sample {key} has {len(jpegs)} pictures, frames={meta['frames']} and {len(meta['times'])} times: give "
                "the same number of each, at least 1"
            )
        if flow and len(flow) != len(jpegs):
            raise UserError(
                f"sample {key} has {len(flow)} flow fields for {len(jpegs)} frames: store one field per frame"
            )
        if not windows or windows[0] != 0 or sorted(set(windows)) != list(windows) or windows[-1] >= len(jpegs):
            raise UserError(
                f"sample {key}: windows={windows} must start at 0, increase, and stay below frames={len(jpegs)}"
            )

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            end = self._size + 2 * tarfile.BLOCKSIZE  # a tar ends with two empty blocks, padded to a full record
            self._append(bytes(end + -end % tarfile.RECORDSIZE - self._size))
            self.flush()
            self._file.close()
        except OSError:  # usually a full disk
            self._discard()
            raise
        self._publish()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes the buffer, and the flush may fail again
            self._file.close()
        recover(self.path)

    def _publish(self) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "encoding": self.encoding,
            "name": self.path.name,
            "sha256": self._sha256.hexdigest(),
            "bytes": self._size,
            "samples": len(self._columns["key"]),
            "columns": self._columns,
        }
        try:
            raw = _index_bytes(content)
        except UserError:
            self._discard()
            raise
        publish(self.path, raw)
        self.entry = _entry(content, raw)


def write_index(shard: Path, content: Mapping[str, Any]) -> ShardEntry:
    """Write the index of a shard atomically, and return the shard's manifest entry."""
    raw = _index_bytes(content)
    write_atomically(index_path(shard), raw)
    return _entry(content, raw)


def _index_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of an index. Raises UserError if a reader would refuse the index."""
    raw = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    try:
        parse_json(raw, IndexFile, index_limit(content["samples"]))
    except InvalidJsonError as error:
        raise UserError(
            f"the index of {content['name']} could not be read again ({error}): store fewer samples per shard"
        ) from error
    return raw


def _entry(content: Mapping[str, Any], raw: bytes) -> ShardEntry:
    name, sha256, size, samples = (content[key] for key in ("name", "sha256", "bytes", "samples"))
    return ShardEntry(name, sha256, size, samples, hashlib.sha256(raw).hexdigest())


def load_index(shard: Path, entry: ShardEntry | None = None) -> tuple[ShardEntry, dict[str, list[Any]]]:
    """Read and parse the index of a shard, see :func:`parse_index`. A missing index also raises CorruptSample."""
    path = current_index(shard)
    try:
        raw = read_limited(path, index_limit(entry.samples if entry else MAX_SAMPLES))
    except FileNotFoundError:
        raise CorruptSample(Reason.MISSING_SHARD, shard.name, f"{path} does not exist") from None
    except InvalidJsonError as error:
        raise CorruptSample(Reason.BAD_INDEX, shard.name, f"{path} is not a shard index ({error})") from error
    except OSError as error:
        raise CorruptSample(Reason.UNREADABLE, shard.name, str(error)) from error
    return parse_index(path, raw, entry)


def parse_index(
    path: Path | str, raw: bytes, entry: ShardEntry | None = None
) -> tuple[ShardEntry, dict[str, list[Any]]]:
    """Parse an index; return the shard's manifest entry and the columns, each a list of one value per sample.

    The columns are key, crc32 (of KEY.jpgs), label, fps, frames, stride, height, width, windows, and the offset and
    size of the members crcs, jpgs, json and flow (size 0 if the sample has no flow).

    Raises:
        CorruptSample: the index is damaged or differs from ``entry``, the shard's entry in the manifest.
        UserError: ``entry`` is not given, and the index has a different format version.
    """
    shard = entry.name if entry else Path(path).name.removesuffix(".idx.json") + ".tar"
    if entry is not None and hashlib.sha256(raw).hexdigest() != entry.index_sha256:
        raise _changed(path, raw, entry)
    try:
        index = parse_json(raw, IndexFile)
    except InvalidJsonError as error:
        with contextlib.suppress(InvalidJsonError):
            check_version(path, parse_json(raw, Version).format_version)
        raise CorruptSample(Reason.BAD_INDEX, shard, f"{path} is not a shard index ({error})") from error
    check_version(path, index.format_version)
    found = _entry(index.__dict__, raw)
    if entry is not None and found != entry:
        raise _replaced(found, entry)
    return found, index.columns.__dict__


def _replaced(found: ShardEntry, entry: ShardEntry) -> CorruptSample:
    return CorruptSample(Reason.REPLACED_SHARD, entry.name, f"its index describes {found}, the manifest {entry}")


def _changed(path: Path | str, raw: bytes, entry: ShardEntry) -> CorruptSample:
    """Return the error for an index with a wrong checksum: the index is damaged, or it describes another shard."""
    try:
        found, _ = parse_index(path, raw)
    except (CorruptSample, UserError):
        found = entry
    if replace(found, index_sha256=entry.index_sha256) != entry:
        return _replaced(found, entry)
    return CorruptSample(Reason.BAD_INDEX, entry.name, f"{path} was changed: its sha256 differs from the manifest")


def check_version(path: Path | str, version: int) -> None:
    """Raise UserError if ``version`` is not this code's format version. Call this before you read other values."""
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has shard format version {version}, but this program reads version {FORMAT_VERSION}: "
            "make the shards again, or use the program that wrote them"
        )


def shard_is_complete(shard: Path, entry: ShardEntry | None = None) -> bool:
    """Return whether a shard has its index and the size in the index. ``entry`` must match the index if given."""
    try:
        indexed, _ = load_index(shard, entry)
        check_size(shard, indexed)
        return True
    except (CorruptSample, OSError):
        return False


def check_size(shard: Path, entry: ShardEntry) -> None:
    """Raise CorruptSample if a shard is missing or its size differs from its manifest entry."""
    try:
        size = shard.stat().st_size
    except FileNotFoundError:
        raise CorruptSample(Reason.MISSING_SHARD, shard.name, f"{shard} does not exist") from None
    except OSError as error:
        raise CorruptSample(Reason.UNREADABLE, shard.name, str(error)) from error
    if size != entry.bytes:
        reason = Reason.TRUNCATED_SHARD if size < entry.bytes else Reason.REPLACED_SHARD
        raise CorruptSample(reason, shard.name, f"it has {size} bytes, the manifest says {entry.bytes}")

"""The shard format: the one place that knows how clips lie in bytes.

A shard is a plain WebDataset tar (``NAME.tar``) of pre-decoded videos, one sample a video::

    KEY.crcs   u32 little-endian crc32 of each stored frame, so that a partial read can be checked
    KEY.jpgs   u32 little-endian offsets[T + 1] from the start of the member, then T JPEGs end to end
    KEY.rgbs   in place of KEY.jpgs where frames are stored raw: offsets, then T pictures of uint8 (height, width, 3)
    KEY.json   label, class name, source, fps, frames, stride, height, width, times (see :data:`META_KEYS`)
    KEY.flow   optional: offsets[T + 1] like KEY.jpgs, then T optical-flow fields (motionmae.data.flow)

Beside it lies its index ``NAME.idx.json``: where each member starts, its size, and what a loader must know to cut a
clip without opening KEY.json. The tar is written under a temporary name, flushed and renamed; the index follows and
marks the shard as complete. The bytes depend on the samples alone: no times, owners or host names.

``motionmae.data.shards.manifest`` names the shards of a data set; ``motionmae.data.shards.reader`` reads samples back.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.errors import UserError
from motionmae.files import sync_folder, write_atomically

ENCODINGS = {"jpeg": "jpgs", "raw": "rgbs"}
"""How frames can be stored -> the ending of the member that holds them (``jpgs`` in the columns of the index)."""

FORMAT_VERSION = 2
"""Changes when a reader of the former version would misread a shard; 2: manifests hold their indexes' sha256."""

META_KEYS = ("label", "class_name", "source", "fps", "frames", "stride", "height", "width", "times")
"""What every KEY.json holds: class number (-1: none) and name; path of the video within its data set; its frames a
second; stored frames; distance of stored frames in source frames; stored pixels; seconds of each stored frame."""

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
    """What a manifest says of one shard."""

    name: str
    """File name within the folder, ``NAME.tar``."""
    sha256: str
    """Of the whole tar."""
    bytes: int
    """Size of the tar."""
    samples: int
    """Samples in it."""
    index_sha256: str
    """Of its index, the file ``NAME.idx.json``."""


def pack_frames(frames: Sequence[bytes]) -> bytes:
    """The blob of a sample: u32 offsets[T + 1] from its own start, then the T frames end to end."""
    return b"".join(_blob(frames))


def _blob(frames: Sequence[bytes]) -> list[bytes]:
    """The parts of :func:`pack_frames`, which are megabytes and need not be copied to be written."""
    start = 4 * (len(frames) + 1)
    offsets = [start]
    for frame in frames:
        offsets.append(offsets[-1] + len(frame))
    if offsets[-1] >= 2**32:
        raise UserError(f"a sample of {offsets[-1]} bytes exceeds a shard's 4 GiB a sample: store fewer frames")
    return [struct.pack(f"<{len(offsets)}I", *offsets), *frames]


def index_path(shard: Path) -> Path:
    """``NAME.idx.json`` of ``NAME.tar``."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".idx.json")


class _HashedFile:
    """A file that is only appended to, and knows the sha256 of what it holds."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)


class ShardWriter:
    """Write one shard; it exists, complete, after a clean exit of the ``with`` block and not at all otherwise.

    A leaving exception removes the unfinished file and passes on. A killed process leaves ``NAME.tar.tmp``, which the
    next writer of the same shard overwrites. An older shard of that name is replaced.

    Args:
        path: where the shard goes; its name ends in ``.tar``.
        encoding: of the frames, a key of :data:`ENCODINGS`.

    Example::

        with ShardWriter(folder / "train-000000.tar") as shard:
            shard.write("00000000", jpegs, meta)
        shard.entry  # for the manifest
    """

    def __init__(self, path: Path, encoding: str = "jpeg"):
        if path.suffix != ".tar":
            raise UserError(f"a shard's name ends in .tar: {path}")
        self.path = path
        self.encoding = encoding
        self.entry: ShardEntry | None = None
        self._temporary = path.with_name(path.name + ".tmp")
        self._columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}

    def __enter__(self) -> "ShardWriter":
        self._raw = self._temporary.open("wb", buffering=_WRITE_BYTES)
        self._file = _HashedFile(self._raw)
        return self

    def write(self, key: str, jpegs: Sequence[bytes], meta: Mapping[str, Any], flow: Sequence[bytes] = ()) -> None:
        """Append one sample.

        Args:
            key: unique in the data set; letters, digits, ``_`` and ``-`` (WebDataset cuts names at the first dot).
            jpegs: the stored frames in order, at least one, all of meta's height and width.
            meta: all of :data:`META_KEYS`, plus what the maker wants to note; ``windows`` lists the first frame of
                each stored window where only parts of a video are stored (default ``[0]``): no clip crosses one.
            flow: optical-flow fields, one a frame (motionmae.data.flow.encode_flow), or none.

        Raises:
            UserError: for a key, meta or number of frames that a reader could not make sense of.
        """
        meta = {"windows": [0], **meta}
        self._refuse_nonsense(key, jpegs, meta, flow)
        members = {
            "crcs": [struct.pack(f"<{len(jpegs)}I", *map(zlib.crc32, jpegs))],
            "jpgs": _blob(jpegs),
            "json": [json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()],
        }
        if flow:
            members["flow"] = _blob(flow)
        row = {name: meta[name] for name in ("label", "fps", "frames", "stride", "height", "width", "windows")}
        crc32 = functools.reduce(lambda crc, part: zlib.crc32(part, crc), members["jpgs"], 0)
        row |= {"key": key, "crc32": crc32, "flow_offset": 0, "flow_size": 0}
        for suffix, parts in members.items():
            ending = ENCODINGS[self.encoding] if suffix == "jpgs" else suffix
            row[f"{suffix}_offset"] = self._file.size + _TAR_HEADER
            row[f"{suffix}_size"] = self._append(f"{key}.{ending}", parts)
        for name, column in self._columns.items():
            column.append(row[name])

    def _append(self, name: str, parts: Sequence[bytes]) -> int:
        """Write a member part by part (``TarFile`` wants it in one piece, a copy of megabytes); returns its bytes."""
        info = tarfile.TarInfo(name)  # mtime 0, no owner
        info.size, info.mode = sum(map(len, parts)), 0o644
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        for part in parts:
            self._file.write(part)
        self._file.write(bytes(-info.size % tarfile.BLOCKSIZE))
        return info.size

    def _refuse_nonsense(
        self, key: str, jpegs: Sequence[bytes], meta: Mapping[str, Any], flow: Sequence[bytes]
    ) -> None:
        missing = [name for name in META_KEYS if name not in meta]
        windows = meta["windows"]
        if not _KEY.fullmatch(key):
            raise UserError(f"the sample key {key!r} needs 1 to 80 letters, digits, '_' or '-'")
        if key in self._columns["key"]:
            raise UserError(f"the sample key {key!r} occurs twice in {self.path.name}: give every sample its own")
        if missing:
            raise UserError(f"the meta of sample {key} lacks {', '.join(missing)}")
        if not jpegs or not len(jpegs) == meta["frames"] == len(meta["times"]):
            raise UserError(
                f"sample {key}: {len(jpegs)} pictures, frames={meta['frames']}, {len(meta['times'])} times; "
                "they must be equal and at least 1"
            )
        if flow and len(flow) != len(jpegs):
            raise UserError(f"sample {key} has {len(flow)} flow fields for {len(jpegs)} frames: store one a frame")
        if not windows or windows[0] != 0 or sorted(set(windows)) != list(windows) or windows[-1] >= len(jpegs):
            raise UserError(f"sample {key}: windows={windows} must rise from 0 to less than frames={len(jpegs)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            end = self._file.size + 2 * tarfile.BLOCKSIZE  # two empty blocks, then to the end of a record
            self._file.write(bytes(end + -end % tarfile.RECORDSIZE - self._file.size))
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
        except OSError:  # a full disk, most often
            self._discard()
            raise
        self._publish()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # flushing what is left may fail again
            self._raw.close()
        self._temporary.unlink()

    def _publish(self) -> None:
        index = index_path(self.path)
        index.unlink(missing_ok=True)  # until the new index is there, the shard does not count as complete
        self._temporary.replace(self.path)
        sync_folder(self.path.parent)
        content = {
            "format_version": FORMAT_VERSION,
            "encoding": self.encoding,
            "name": self.path.name,
            "sha256": self._file.sha256.hexdigest(),
            "bytes": self._file.size,
            "samples": len(self._columns["key"]),
            "columns": self._columns,
        }
        self.entry = write_index(self.path, content)


def write_index(shard: Path, content: Mapping[str, Any]) -> ShardEntry:
    """Write a shard's index, atomically; returns the shard's row of a manifest."""
    raw = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    write_atomically(index_path(shard), raw, unique=False)
    return _entry(content, raw)


def _entry(content: Mapping[str, Any], raw: bytes) -> ShardEntry:
    name, sha256, size, samples = (content[key] for key in ("name", "sha256", "bytes", "samples"))
    return ShardEntry(name, sha256, size, samples, hashlib.sha256(raw).hexdigest())


def load_index(shard: Path, entry: ShardEntry | None = None) -> tuple[ShardEntry, dict[str, list[Any]]]:
    """The index of a shard, see :func:`parse_index`.

    Raises:
        CorruptSample: it is missing, is no index, or is not the one that the manifest names.
        UserError: without ``entry``: another format version wrote it.
    """
    path = index_path(shard)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise CorruptSample(Reason.MISSING_SHARD, shard.name, f"{path} does not exist") from None
    except OSError as error:
        raise CorruptSample(Reason.UNREADABLE, shard.name, str(error)) from error
    return parse_index(path, raw, entry)


def parse_index(
    path: Path | str, raw: bytes, entry: ShardEntry | None = None
) -> tuple[ShardEntry, dict[str, list[Any]]]:
    """Entry of a shard, and the columns of its index (a list of one value a sample each).

    Columns: key, crc32 (of KEY.jpgs), label, fps, frames, stride, height, width, windows, and offset and size of
    the members crcs, jpgs, json, flow (size 0: none).

    Args:
        path: where the index lies, for messages.
        raw: what it holds.
        entry: the shard's row of the manifest, whose checksum is held against ``raw``; None: ``raw`` is believed.

    Raises:
        CorruptSample: it is no index, or not the one that the manifest names.
        UserError: without ``entry``: another format version wrote it.
    """
    shard = Path(path).name.removesuffix(".idx.json") + ".tar"
    if entry is not None and hashlib.sha256(raw).hexdigest() != entry.index_sha256:
        raise _changed(path, raw, entry)
    try:
        content = json.loads(raw)
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptSample(Reason.BAD_INDEX, shard, f"{path} is no shard index ({error})") from error
    check_version(path, version)
    try:
        found = _entry(content, raw)
        columns = {name: content["columns"][name] for name in _COLUMNS}
    except (KeyError, TypeError) as error:
        raise CorruptSample(Reason.BAD_INDEX, shard, f"{path} lacks {error}") from error
    if any(len(column) != found.samples for column in columns.values()):
        raise CorruptSample(Reason.BAD_INDEX, shard, f"{path} does not hold {found.samples} samples")
    return found, columns


def _changed(path: Path | str, raw: bytes, entry: ShardEntry) -> CorruptSample:
    """What is wrong with an index whose checksum is not the manifest's: another shard's, or damaged."""
    try:
        found, _ = parse_index(path, raw)
    except (CorruptSample, UserError):
        found = entry
    if replace(found, index_sha256=entry.index_sha256) != entry:
        return CorruptSample(Reason.REPLACED_SHARD, entry.name, f"its index describes {found}, the manifest {entry}")
    return CorruptSample(Reason.BAD_INDEX, entry.name, f"{path} is not what was written: its sha256 is another")


def check_version(path: Path | str, version: object) -> None:
    """Refuse what another format version wrote, before anything else in it is believed."""
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has shard format version {version}, this program reads version {FORMAT_VERSION}: "
            "make the shards again, or use the program that wrote them"
        )


def shard_is_complete(shard: Path, entry: ShardEntry | None = None) -> bool:
    """Whether a shard was written to its end: its index, written last, is there and the tar has the size it names.

    With ``entry`` the index must be the one that was written with the shard.
    """
    try:
        indexed, _ = load_index(shard, entry)
        check_size(shard, indexed)
        return True
    except (CorruptSample, OSError):
        return False


def sha256_of(file: BinaryIO) -> str:
    """The sha256 of the rest of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def check_size(shard: Path, entry: ShardEntry) -> None:
    """Hold a shard's size against its entry.

    Raises:
        CorruptSample: missing, truncated or replaced.
    """
    try:
        size = shard.stat().st_size
    except FileNotFoundError:
        raise CorruptSample(Reason.MISSING_SHARD, shard.name, f"{shard} does not exist") from None
    except OSError as error:
        raise CorruptSample(Reason.UNREADABLE, shard.name, str(error)) from error
    if size != entry.bytes:
        reason = Reason.TRUNCATED_SHARD if size < entry.bytes else Reason.REPLACED_SHARD
        raise CorruptSample(reason, shard.name, f"it has {size} bytes, the manifest says {entry.bytes}")

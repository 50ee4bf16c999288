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

``motionmae.data.manifest`` names the shards of a data set; ``motionmae.data.reader`` reads samples back.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from motionmae.data.corruption import CorruptSample, Reason
from motionmae.data.files import sync_folder, write_atomically
from motionmae.errors import UserError

ENCODINGS = {"jpeg": "jpgs", "raw": "rgbs"}
"""How frames can be stored -> the ending of the member that holds them (``jpgs`` in the columns of the index)."""

FORMAT_VERSION = 1
"""Changes when a reader of the former version would misread a shard."""

META_KEYS = ("label", "class_name", "source", "fps", "frames", "stride", "height", "width", "times")
"""What every KEY.json holds: class number (-1: none) and name; path of the video within its data set; its frames a
second; stored frames; distance of stored frames in source frames; stored pixels; seconds of each stored frame."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_TAR_HEADER = tarfile.BLOCKSIZE
_COPY_BYTES = 1 << 20  # tarfile's own 16 KB cost 6 us a frame more
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


def pack_frames(frames: Sequence[bytes]) -> bytes:
    """The blob of a sample: u32 offsets[T + 1] from its own start, then the T frames end to end."""
    start = 4 * (len(frames) + 1)
    offsets = [start]
    for frame in frames:
        offsets.append(offsets[-1] + len(frame))
    if offsets[-1] >= 2**32:
        raise UserError(f"a sample of {offsets[-1]} bytes exceeds a shard's 4 GiB a sample: store fewer frames")
    return b"".join((struct.pack(f"<{len(offsets)}I", *offsets), *frames))


def unpack_frames(blob: bytes) -> list[bytes]:
    """The frames of a whole blob, the inverse of :func:`pack_frames`."""
    (start,) = struct.unpack_from("<I", blob)
    offsets = struct.unpack_from(f"<{start // 4}I", blob)
    return [blob[low:high] for low, high in itertools.pairwise(offsets)]


def index_path(shard: Path) -> Path:
    """``NAME.idx.json`` of ``NAME.tar``."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".idx.json")


class _HashedFile(io.RawIOBase):
    """A file that is only appended to, and knows the sha256 of what it holds."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.size


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
        self._raw = self._temporary.open("wb")
        self._file = _HashedFile(self._raw)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPY_BYTES)
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
        blob = pack_frames(jpegs)
        members = {
            "crcs": struct.pack(f"<{len(jpegs)}I", *map(zlib.crc32, jpegs)),
            "jpgs": blob,
            "json": json.dumps(meta, sort_keys=True, separators=(",", ":")).encode(),
        }
        if flow:
            members["flow"] = pack_frames(flow)
        row = {name: meta[name] for name in ("label", "fps", "frames", "stride", "height", "width", "windows")}
        row |= {"key": key, "crc32": zlib.crc32(blob), "flow_offset": 0, "flow_size": 0}
        for suffix, content in members.items():
            ending = ENCODINGS[self.encoding] if suffix == "jpgs" else suffix
            info = tarfile.TarInfo(f"{key}.{ending}")  # mtime 0, no owner
            info.size, info.mode = len(content), 0o644
            row |= {f"{suffix}_offset": self._file.size + _TAR_HEADER, f"{suffix}_size": info.size}
            self._tar.addfile(info, io.BytesIO(content))
        for name, column in self._columns.items():
            column.append(row[name])

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
            self._tar.close()
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
        samples = len(self._columns["key"])
        self.entry = ShardEntry(self.path.name, self._file.sha256.hexdigest(), self._file.size, samples)
        content = {
            "format_version": FORMAT_VERSION,
            "encoding": self.encoding,
            "name": self.entry.name,
            "sha256": self.entry.sha256,
            "bytes": self.entry.bytes,
            "samples": samples,
            "columns": self._columns,
        }
        write_atomically(index, json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def load_index(shard: Path) -> tuple[ShardEntry, dict[str, list[Any]]]:
    """The index of a shard: its entry, and its columns (a list of one value a sample each).

    Columns: key, crc32 (of KEY.jpgs), label, fps, frames, stride, height, width, windows, and offset and size of
    the members crcs, jpgs, json, flow (size 0: none).

    Raises:
        CorruptSample: if it is missing or is no index.
        UserError: if another format version wrote it.
    """
    path = index_path(shard)
    try:
        content = json.loads(path.read_bytes())
        version = content["format_version"]
    except FileNotFoundError:
        raise CorruptSample(Reason.MISSING_SHARD, shard.name, f"{path} does not exist") from None
    except OSError as error:
        raise CorruptSample(Reason.UNREADABLE, shard.name, str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptSample(Reason.BAD_INDEX, shard.name, f"{path.name} is no shard index ({error})") from error
    check_version(path, version)
    try:
        entry = ShardEntry(*(content[name] for name in ("name", "sha256", "bytes", "samples")))
        columns = {name: content["columns"][name] for name in _COLUMNS}
    except (KeyError, TypeError) as error:
        raise CorruptSample(Reason.BAD_INDEX, shard.name, f"{path.name} lacks {error}") from error
    if any(len(column) != entry.samples for column in columns.values()):
        raise CorruptSample(Reason.BAD_INDEX, shard.name, f"{path.name} does not hold {entry.samples} samples")
    return entry, columns


def check_version(path: Path | str, version: object) -> None:
    """Refuse what another format version wrote, before anything else in it is believed."""
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has shard format version {version}, this program reads version {FORMAT_VERSION}: "
            "make the shards again, or use the program that wrote them"
        )


def shard_is_complete(shard: Path) -> bool:
    """Whether a shard was written to its end: its index, written last, is there and the tar has the size it names."""
    try:
        entry, _ = load_index(shard)
        return entry.name == shard.name and shard.stat().st_size == entry.bytes
    except (CorruptSample, OSError):
        return False


def shard_entry(shard: Path) -> ShardEntry:
    """What the manifest says of a complete shard, from its index (a resumed writer did not write it itself)."""
    return load_index(shard)[0]


def sha256_of(file: BinaryIO) -> str:
    """The sha256 of the rest of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def verify_shard(shard: Path, entry: ShardEntry | None = None) -> list[CorruptSample]:
    """Check a shard against its index, and against the manifest's ``entry`` where given; read every byte.

    Returns:
        What is wrong, nothing if all is well. Where the whole shard's sha256 differs, the damaged samples are named.

    Raises:
        UserError: if another format version wrote it.
    """
    try:
        indexed, columns = load_index(shard)
        check_entry(shard, indexed, entry or indexed)
        with shard.open("rb") as file:
            whole = sha256_of(file)
            if whole == indexed.sha256:
                return []
            faults = []
            rows = zip(columns["key"], columns["jpgs_offset"], columns["jpgs_size"], columns["crc32"], strict=True)
            for key, offset, size, crc in rows:
                if zlib.crc32(os.pread(file.fileno(), size, offset)) != crc:
                    faults.append(CorruptSample(Reason.CHECKSUM, f"{shard.name}:{key}", "its frames were changed"))
    except CorruptSample as fault:
        return [fault]
    except OSError as error:
        return [CorruptSample(Reason.UNREADABLE, shard.name, str(error))]
    detail = f"sha256 is {whole}, its index says {indexed.sha256}"
    return faults or [CorruptSample(Reason.CHECKSUM, shard.name, detail)]


def check_entry(shard: Path, indexed: ShardEntry, entry: ShardEntry) -> None:
    """Hold a shard's size, and what its index says of it, against the manifest's entry.

    Raises:
        CorruptSample: missing, truncated or replaced.
    """
    if indexed != entry:
        detail = f"its index describes {indexed}, the manifest {entry}"
        raise CorruptSample(Reason.REPLACED_SHARD, shard.name, detail)
    try:
        size = shard.stat().st_size
    except FileNotFoundError:
        raise CorruptSample(Reason.MISSING_SHARD, shard.name, f"{shard} does not exist") from None
    if size != entry.bytes:
        reason = Reason.TRUNCATED_SHARD if size < entry.bytes else Reason.REPLACED_SHARD
        raise CorruptSample(reason, shard.name, f"it has {size} bytes, the manifest says {entry.bytes}")

"""Decode clips from an FFCV file (``.beton``). FFCV is imported only when a file is opened.

Order, frames, crops and flips are the same as with the shards. Only the pixels differ slightly: FFCV's library decodes
with the system's libjpeg-turbo and the fast DCT, motionmae.data.jpeg with its own libjpeg-turbo and the exact DCT
(docs/ffcv.md has the figures).
"""

import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import simplejpeg
from pydantic import ValidationError

from motionmae.config import ClipConfig, DataConfig
from motionmae.config.text_types import node_path
from motionmae.data.clip_decoder import ClipRequest, clip_augment
from motionmae.data.clip_sampling import Crop
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shards.schema import SampleRow
from motionmae.data.shared_buffers import SharedBuffer
from motionmae.errors import UserError

_DECODE_LOCK = threading.Lock()  # numba's workqueue threading layer aborts if two threads enter it


def load_format() -> ModuleType:
    """Import motionmae.data.ffcv.format. Raises UserError if FFCV or one of its system libraries is missing."""
    try:
        from motionmae.data.ffcv import format
    except ImportError as error:
        raise UserError(
            f"a .beton needs FFCV, which cannot be imported ({error}): run apt-get install libopencv-dev "
            "libturbojpeg0-dev pkg-config, then pip install 'motionmae[ffcv]', or leave data.beton empty"
        ) from error
    return format


class BetonReader:
    """Reader of samples of a memory-mapped .beton by their ids.

    The file must not be truncated while it is open: reading a missing page kills the process (SIGBUS). Raises UserError
    if FFCV is missing, or if the file is missing, is incomplete, has a different format, or was made from shards that
    ``manifest`` does not describe.
    """

    def __init__(self, path: Path, manifest: Manifest):
        self.format = load_format()
        from ffcv.memory_managers import OSCacheManager
        from ffcv.reader import Reader

        self.path = path
        remake = f"write it again with `motionmae shards beton SHARDS --out {path}`"
        try:
            reader = Reader(str(path), {self.format.FIELD: self.format.ClipField})
            field = reader.handlers[self.format.FIELD]
            rows = reader.metadata["f0"]
            if rows.dtype != self.format.ROW:
                raise ValueError("its rows have other columns")
        except FileNotFoundError:
            raise UserError(f"data.beton={path} does not exist: {remake}, or leave data.beton empty") from None
        except Exception as error:  # FFCV does not check what it reads, and fails in any way
            raise UserError(f"{path} is not a .beton of this program ({error}): {remake}") from error
        if field.version != self.format.BETON_VERSION:
            raise UserError(f"{path} has version {field.version} instead of {self.format.BETON_VERSION}: {remake}")
        if field.fingerprint != manifest.fingerprint:
            raise UserError(f"{path} was not made from the shards of data.shards: {remake}")
        if not len(rows) == len(reader.alloc_table) // 2 == manifest.samples:
            raise UserError(f"{path} lacks some of the {manifest.samples} samples: {remake}")
        self._rows, self._stride = rows, manifest.encoder.stride
        self._memory_context = OSCacheManager(reader).schedule_epoch([])
        self._memory_context.__enter__()
        self.memory: np.ndarray = np.asarray(self._memory_context.state[0]).view(np.ndarray)
        """The whole file as uint8."""

    def _where(self, sample: int) -> str:
        return f"{self.path.name}:{sample}"

    def _bytes(self, sample: int, start: int, size: int) -> bytes:
        self._check_inside(sample, start, size)
        return self.memory[start : start + size].tobytes()

    def _check_inside(self, sample: int, start: int, size: int) -> None:
        if start + size > len(self.memory):
            detail = f"its row points to byte {start}, beyond the end of the file"
            raise CorruptSample(Reason.BAD_INDEX, self._where(sample), detail)

    def read_meta(self, sample: int) -> tuple[SampleMeta, np.ndarray]:
        """Read the index entry of a sample and the crc32 of each frame. Raises CorruptSample if it is damaged."""
        row = self._rows[sample]
        frames, windows = int(row["frames"]), int(row["windows"])
        table = self._bytes(sample, int(row["table"]), 4 * (frames + windows))
        if self.format.row_checksum(row, table) != row["crc"]:
            raise CorruptSample(Reason.CHECKSUM, self._where(sample), "its row was changed")
        checksums = np.frombuffer(table, "<u4")
        numbers = {name: row[name].item() for name in ("label", "fps", "frames", "stride", "height", "width")}
        try:
            known = SampleRow(windows=tuple(checksums[frames:].tolist()), **numbers)
        except ValidationError as error:
            detail = f"its row is wrong ({error.errors(include_url=False)[0]['msg']})"
            raise CorruptSample(Reason.BAD_INDEX, self._where(sample), detail) from error
        if known.stride != self._stride:
            detail = f"its row has the stride {known.stride}, the manifest says {self._stride}"
            raise CorruptSample(Reason.BAD_INDEX, self._where(sample), detail)
        return SampleMeta(self.path.name, str(sample), has_flow=False, **known.__dict__), checksums[:frames]

    def find_frames(self, sample: int, numbers: Sequence[int], checksums: np.ndarray) -> list[tuple[int, int]]:
        """Return start and end of each frame's JPEG in ``memory``.

        Raises CorruptSample if a crc32 differs, or if a JPEG has not the size in its row, to which FFCV would scale it.
        """
        start, size = int(self._rows[sample]["ptr"]), int(self._rows[sample]["size"])
        offsets = np.frombuffer(self._bytes(sample, start, 4 * (len(checksums) + 1)), "<u4").tolist()
        self._check_inside(sample, start, size)
        found: dict[int, tuple[int, int]] = {}
        for number in set(numbers):
            low, high = offsets[number], offsets[number + 1]
            if not low < high <= size or zlib.crc32(self.memory[start + low : start + high].data) != checksums[number]:
                raise CorruptSample(Reason.CHECKSUM, self._where(sample), f"frame {number} was changed")
            self._check_size(sample, number, self.memory[start + low : start + high])
            found[number] = (start + low, start + high)
        return [found[number] for number in numbers]

    def _check_size(self, sample: int, number: int, jpeg: np.ndarray) -> None:
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        except ValueError as error:
            raise CorruptSample(Reason.DECODE, self._where(sample), f"frame {number} is no JPEG ({error})") from error
        row = self._rows[sample]
        if (height, width) != (row["height"], row["width"]):
            detail = f"frame {number} has {height} x {width} pixels, its row says {row['height']} x {row['width']}"
            raise CorruptSample(Reason.DECODE, self._where(sample), detail)


class _Cut(NamedTuple):
    """Clip to decode. Its frames match their checksums."""

    meta: SampleMeta
    bounds: list[tuple[int, int]]
    crop: Crop

    @property
    def numbers(self) -> tuple[int, ...]:
        """Row for the argument ``cuts`` of :func:`motionmae.data.ffcv.format.decode_frames`."""
        crop = self.crop
        edges = (crop.top, crop.top + crop.height, crop.left, crop.left + crop.width)
        return (self.meta.height, self.meta.width, *edges, int(crop.flip))


class BetonDecoder:
    """:class:`motionmae.data.clip_decoder.ClipDecoder` of a .beton.

    One loop decodes a micro-batch in parallel, with ``data.threads`` threads, but no more than numba has.
    """

    threads = 1  # decode_into starts its own threads
    reader: None = None

    def __init__(self, data: DataConfig, clip: ClipConfig, manifest: Manifest):
        self._data, self._clip = data, clip
        self._beton = BetonReader(node_path(data.beton), manifest)
        self._augment = clip_augment(data, clip)
        self._scratch = np.empty((0, 0), np.uint8)
        self._pool = ThreadPoolExecutor(data.threads, "beton-reader")

    def decode_into(
        self, requests: Sequence[ClipRequest], clips: SharedBuffer, flows: SharedBuffer | None
    ) -> list[SampleMeta | CorruptSample]:
        assert flows is None, "a .beton holds no optical flow"
        cuts = list(self._pool.map(self._cut, requests))
        intact = [(request.row, cut) for request, cut in zip(requests, cuts, strict=True) if isinstance(cut, _Cut)]
        faults = iter(self._decode(intact, clips.array) if intact else ())
        outcomes: list[SampleMeta | CorruptSample] = [
            (next(faults) or cut.meta) if isinstance(cut, _Cut) else cut for cut in cuts
        ]
        if self._augment:
            decoded = [one for one, outcome in zip(requests, outcomes, strict=True) if isinstance(outcome, SampleMeta)]
            rows, randoms = (clips.array[one.row] for one in decoded), (one.augment_random for one in decoded)
            list(self._pool.map(self._augment, rows, randoms))
        return outcomes

    def _cut(self, request: ClipRequest) -> _Cut | CorruptSample:
        try:
            meta, checksums = self._beton.read_meta(request.sample)
            frames, crop = request.cut(meta, self._data, self._clip)
            return _Cut(meta, self._beton.find_frames(request.sample, frames, checksums), crop)
        except CorruptSample as fault:
            return fault

    def _decode(self, cuts: list[tuple[int, _Cut]], clips: np.ndarray) -> list[CorruptSample | None]:
        """Decode clips into their rows of ``clips``. Return the error of each clip, or None for an intact clip."""
        import numba

        threads = min(self._data.threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        picture = max(3 * cut.meta.height * cut.meta.width for _, cut in cuts)
        if self._scratch.shape[1] < picture:
            self._scratch = np.empty((threads, picture), np.uint8)
        lines = np.empty((threads, 3 * max(cut.meta.width for _, cut in cuts)), np.float32)
        bounds = np.array([cut.bounds for _, cut in cuts], np.int64)
        failed = np.zeros(bounds.shape[:2], np.uint8)
        rows = np.array([row for row, _ in cuts])
        numbers = np.array([cut.numbers for _, cut in cuts], np.int64)
        with _DECODE_LOCK:
            numba.set_num_threads(threads)
            decode_frames = self._beton.format.decode_frames
            decode_frames(self._beton.memory, bounds, numbers, rows, self._scratch, lines, clips, failed)
        faults: list[CorruptSample | None] = [None] * len(cuts)
        for clip in np.flatnonzero(failed.any(axis=1)).tolist():
            detail = f"frame {failed[clip].argmax()} of the clip is not a JPEG"
            faults[clip] = CorruptSample(Reason.DECODE, cuts[clip][1].meta.where, detail)
        return faults

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

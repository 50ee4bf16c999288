"""Clips out of an FFCV file (``.beton``) that `data_tools/make_beton` wrote from a folder of shards.

FFCV's reader and memory manager map the file; order, frames, crops and flips are ours and keyed as ever, so a batch
holds the same clips as from the shards. Its pixels differ by a little, for FFCV's library decodes with the system's
libjpeg-turbo and the fast DCT, motionmae.data.jpeg with its own and the exact one (docs/ffcv.md has the figures).

FFCV is an optional extra; nothing of it is imported before a file is opened.
"""

import os
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest, clip_augment
from motionmae.data.clips import random_cut
from motionmae.data.crops import Crop
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import SampleMeta
from motionmae.errors import UserError

_DECODING = threading.Lock()  # numba's plainest threading layer ends the process when two threads enter it


def load_format() -> ModuleType:
    """:mod:`motionmae.data.ffcv_format`, which imports FFCV.

    Raises:
        UserError: FFCV is not installed, or cannot find its system libraries.
    """
    try:
        from motionmae.data import ffcv_format
    except ImportError as error:
        raise UserError(
            f"a .beton needs FFCV, which cannot be imported ({error}): apt-get install libopencv-dev "
            "libturbojpeg0-dev pkg-config, then pip install 'motionmae[ffcv]'; or leave data.beton empty"
        ) from error
    return ffcv_format


class BetonReader:
    """The samples of a .beton by their id; bytes are looked at where they lie in the mapped file.

    The file must not be shortened while it is open: reading a mapped page that is gone ends the process (SIGBUS).

    Args:
        path: the file.
        manifest: of the shards it must have been made from.

    Raises:
        UserError: FFCV is missing; the file is missing, incomplete, not ours, or made from other shards.
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
        except FileNotFoundError:
            raise UserError(f"data.beton={path} does not exist: {remake}, or leave data.beton empty") from None
        except (AssertionError, LookupError, ValueError, TypeError, OSError) as error:
            raise UserError(f"{path} is no .beton of this program ({error}): {remake}") from error
        if field.version != self.format.BETON_VERSION:
            raise UserError(f"{path} has version {field.version}, not {self.format.BETON_VERSION}: {remake}")
        if field.fingerprint != manifest.fingerprint:
            raise UserError(f"{path} was made from other shards than those of data.shards: {remake}")
        if not len(rows) == len(reader.alloc_table) // 2 == manifest.samples:
            raise UserError(f"{path} is incomplete, it holds not all of {manifest.samples} samples: {remake}")
        self._rows = rows
        self._memory_context = OSCacheManager(reader).schedule_epoch([])
        self._memory_context.__enter__()
        self.memory: np.ndarray = np.asarray(self._memory_context.state[0]).view(np.ndarray)
        """uint8, the whole file."""

    def _where(self, sample: int) -> str:
        return f"{self.path.name}:{sample}"

    def _bytes(self, sample: int, start: int, size: int) -> bytes:
        if start + size > len(self.memory):
            raise CorruptSample(Reason.BAD_INDEX, self._where(sample), f"its row points past the file's end: {start}")
        return self.memory[start : start + size].tobytes()

    def read_meta(self, sample: int) -> tuple[SampleMeta, np.ndarray]:
        """What the row of a sample says, and the crc32 of each of its frames.

        Raises:
            CorruptSample: the row or its table is not what was written.
        """
        row = self._rows[sample]
        frames, windows = int(row["frames"]), int(row["windows"])
        table = self._bytes(sample, int(row["table"]), 4 * (frames + windows))
        if self.format.row_checksum(row, table) != row["crc"]:
            raise CorruptSample(Reason.CHECKSUM, self._where(sample), "its row was changed")
        numbers: dict[str, Any] = {name: row[name].item() for name in ("label", "fps", "stride", "height", "width")}
        checksums = np.frombuffer(table, "<u4")
        starts = tuple(checksums[frames:].tolist())
        meta = SampleMeta(
            shard=self.path.name, key=str(sample), frames=frames, windows=starts, has_flow=False, **numbers
        )
        return meta, checksums[:frames]

    def find_frames(self, sample: int, numbers: Sequence[int], checksums: np.ndarray) -> list[tuple[int, int]]:
        """Where the JPEG of each asked frame begins and ends in ``memory``; each is checked against its crc32.

        Raises:
            CorruptSample: the bytes are not what was written.
        """
        start, size = int(self._rows[sample]["ptr"]), int(self._rows[sample]["size"])
        offsets = np.frombuffer(self._bytes(sample, start, 4 * (len(checksums) + 1)), "<u4").tolist()
        found: dict[int, tuple[int, int]] = {}
        for number in set(numbers):
            low, high = offsets[number], offsets[number + 1]
            if not low < high <= size or zlib.crc32(self.memory[start + low : start + high].data) != checksums[number]:
                raise CorruptSample(Reason.CHECKSUM, self._where(sample), f"frame {number} was changed")
            found[number] = (start + low, start + high)
        return [found[number] for number in numbers]


class _Cut(NamedTuple):
    """A checked clip, ready to be decoded."""

    meta: SampleMeta
    bounds: list[tuple[int, int]]
    crop: Crop

    @property
    def numbers(self) -> tuple[int, ...]:
        """The row of ``cuts`` of :func:`motionmae.data.ffcv_format.decode_frames`."""
        crop = self.crop
        edges = (crop.top, crop.top + crop.height, crop.left, crop.left + crop.width)
        return (self.meta.height, self.meta.width, *edges, int(crop.flip))


class BetonSource:
    """Clips out of a .beton (:class:`motionmae.data.clip_decoder.ClipDecoder`), a whole micro-batch in one parallel loop.

    Args:
        data: the file, and how clips are cut; at most as many of its threads are used as numba has.
        clip: frames, stride, size.
        manifest: of the shards it was made from.

    Raises:
        UserError: see :class:`BetonReader`.
    """

    threads = 1  # fill is parallel inside
    reader: None = None

    def __init__(self, data: DataConfig, clip: ClipConfig, manifest: Manifest):
        self._data, self._clip = data, clip
        self._reader = BetonReader(Path(os.path.expandvars(data.beton)).expanduser(), manifest)
        self._augment = clip_augment(data, clip)
        self._scratch = np.empty((0, 0), np.uint8)
        self._pool = ThreadPoolExecutor(data.threads, "beton-reader")

    def decode_into(
        self, wanted: Sequence[ClipRequest], clips: np.ndarray, flows: np.ndarray | None
    ) -> list[SampleMeta | CorruptSample]:
        """See :meth:`motionmae.data.clip_decoder.ClipDecoder.fill`; there is no flow in a .beton."""
        assert flows is None, "a .beton holds no optical flow"
        found = list(self._pool.map(self._find, wanted))
        sound = [(clip.row, cut) for clip, cut in zip(wanted, found, strict=True) if isinstance(cut, _Cut)]
        undecoded = iter(self._decode(sound, clips) if sound else ())
        outcomes: list[SampleMeta | CorruptSample] = []
        for cut in found:
            outcomes.append((next(undecoded) or cut.meta) if isinstance(cut, _Cut) else cut)
        if self._augment:
            whole = [one for one, outcome in zip(wanted, outcomes, strict=True) if isinstance(outcome, SampleMeta)]
            list(self._pool.map(self._augment, (clips[one.row] for one in whole), (o.augment_random for o in whole)))
        return outcomes

    def _find(self, clip: ClipRequest) -> _Cut | CorruptSample:
        """Choose the frames and the crop of a clip and check its bytes."""
        try:
            meta, checksums = self._reader.read_meta(clip.sample)
            frames, crop = random_cut(meta, self._data, self._clip, clip.random)
            return _Cut(meta, self._reader.find_frames(clip.sample, frames, checksums), crop)
        except CorruptSample as fault:
            return fault

    def _decode(self, cuts: list[tuple[int, _Cut]], clips: np.ndarray) -> list[CorruptSample | None]:
        """Decode checked clips into their rows; what is wrong with each, None for nothing."""
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
        with _DECODING:
            numba.set_num_threads(threads)
            self._reader.format.decode_frames(
                self._reader.memory, bounds, numbers, rows, self._scratch, lines, clips, failed
            )
        return [
            CorruptSample(Reason.DECODE, cut.meta.where, f"frame of the clip {bad.argmax()} is no JPEG")
            if bad.any()
            else None
            for (_, cut), bad in zip(cuts, failed, strict=True)
        ]

    def close(self) -> None:
        """End its threads; may be called again."""
        self._pool.shutdown(wait=True, cancel_futures=True)

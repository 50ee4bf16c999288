"""Format of clips in an FFCV file, and decoding of the clips by FFCV's C library. This module imports FFCV.

The file has one field, ``clip``, with one row per sample in the order of sample ids. Each row points to two regions of
the file. The blob is the sample's KEY.jpgs (motionmae.data.shards.format). The table of u32 holds the crc32 of each
frame, then the first frame of each window. The row ends in a crc32 over the rest of the row and the table.

numba compiles the decoding loop at its first call, which takes some seconds, because numba cannot cache ctypes
functions on disk.
"""

import json
import os
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.fields.bytes import BytesDecoder
from ffcv.libffcv import imdecode, resize_crop

from motionmae.data.shards.reader import SampleMeta
from motionmae.data.shards.schema import Sha256, Small
from motionmae.json_text import JsonModel, parse_json

# numba prefers TBB. With TBB, a process on one CPU hangs at exit if a thread other than the main thread decoded:
# https://github.com/numba/numba/issues/10556
if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # type: ignore[attr-defined]

BETON_VERSION = 1  # changes when a reader of the previous version would misread a file

FIELD = "clip"

ROW = np.dtype(
    [
        ("ptr", "<u8"),  # position of the blob; FFCV's BytesDecoder needs the names ptr and size
        ("size", "<u8"),
        ("table", "<u8"),
        ("frames", "<u4"),
        ("windows", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("stride", "<u4"),
        ("label", "<i8"),
        ("fps", "<f8"),
        ("crc", "<u4"),
    ]
)


class StoredClip(NamedTuple):
    """Sample to write to the file."""

    meta: SampleMeta
    blob: bytes  # content of KEY.jpgs
    checksums: list[int]  # crc32 of each frame

    @property
    def table(self) -> bytes:
        """Checksums of the frames, then first frames of the windows, as u32."""
        return np.array([*self.checksums, *self.meta.windows], "<u4").tobytes()


def row_checksum(row: np.void, table: bytes) -> int:
    """Compute the crc32 of a row without its field ``crc``, followed by the table of the row."""
    return zlib.crc32(table, zlib.crc32(row.tobytes()[: ROW.fields["crc"][1]]))  # type: ignore[index]


class _Arguments(JsonModel):
    """Arguments of the field in the file header."""

    fingerprint: Sha256
    version: Small


class ClipField(Field):
    """FFCV field that stores a video. Its arguments hold the fingerprint of the shards' manifest."""

    def __init__(self, fingerprint: str, version: int = BETON_VERSION):
        self.fingerprint = fingerprint
        self.version = version

    @property
    def metadata_type(self) -> np.dtype:
        return ROW

    @staticmethod
    def from_binary(binary: np.ndarray) -> "ClipField":
        """Parse the field's arguments in the file header. Raises ValueError if another program wrote the header."""
        content = parse_json(binary.tobytes().rstrip(b"\0"), _Arguments)
        return ClipField(content.fingerprint, content.version)

    def to_binary(self) -> np.void:
        content = json.dumps({"fingerprint": self.fingerprint, "version": self.version}).encode()
        arguments = np.zeros(1, ARG_TYPE)[0]
        arguments[0][: len(content)] = np.frombuffer(content, np.uint8)
        return arguments

    def encode(
        self, destination: np.ndarray, clip: StoredClip, malloc: Callable[[int], tuple[int, np.ndarray]]
    ) -> None:
        """Write the blob and the table of a sample to a page, and its row to ``destination``."""
        meta, table = clip.meta, clip.table
        row = np.zeros(1, ROW)
        for name in ("frames", "height", "width", "stride", "label", "fps"):
            row[name] = getattr(meta, name)
        row["windows"], row["size"] = len(meta.windows), len(clip.blob)
        for name, content in (("ptr", clip.blob), ("table", table)):
            row[name], region = malloc(len(content))
            region[:] = np.frombuffer(content, np.uint8)
        row["crc"] = row_checksum(row[0], table)
        destination[:] = row

    def get_decoder_class(self) -> type[Any]:
        """Return FFCV's BytesDecoder, with which FFCV's own loader returns undecoded blobs."""
        return BytesDecoder


_imdecode = numba.njit(nogil=True)(imdecode)
_resize_crop = numba.njit(nogil=True)(resize_crop)


@numba.njit(nogil=True)
def _taps(source: int, target: int, flip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the two source pixels of each target pixel and the weight of the second, as OpenCV's bilinear resize.

    The weights are multiples of 1/2048. ``flip`` reverses the target pixels.
    """
    first, second = np.empty(target, np.int32), np.empty(target, np.int32)
    share = np.empty(target, np.float32)
    for pixel in range(target):
        exact = min(max((pixel + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        number = target - 1 - pixel if flip else pixel
        first[number] = int(exact)
        second[number] = min(int(exact) + 1, source - 1)
        share[number] = np.float32(round((exact - int(exact)) * 2048) / 2048)
    return first, second, share


@numba.njit(nogil=True)
def _resize_linear(
    picture: np.ndarray, top: int, bottom: int, left: int, right: int, flip: int, line: np.ndarray, out: np.ndarray
) -> None:
    """Crop, resize and mirror one frame in the same way as motionmae.data.jpeg.

    FFCV's library can only resize by area averaging, which takes 8 times as long. ``picture`` is (h, w, 3), ``out`` is
    (size, size, 3), ``line`` is a float32 buffer of at least 3 * (right - left) values.
    """
    rows = picture.reshape((picture.shape[0], picture.shape[1] * 3))[top:bottom, 3 * left : 3 * right]
    results = out.reshape((out.shape[0], out.shape[1] * 3))
    upper, lower, down = _taps(bottom - top, out.shape[0], 0)
    before, after, across = _taps(right - left, out.shape[1], flip)
    half = np.float32(0.5)
    for y in range(out.shape[0]):
        above, below, share, result = rows[upper[y]], rows[lower[y]], down[y], results[y]
        for x in range(above.size):
            line[x] = np.float32(above[x]) + (np.float32(below[x]) - np.float32(above[x])) * share
        for x in range(out.shape[1]):
            low, high, part = 3 * np.uint32(before[x]), 3 * np.uint32(after[x]), across[x]
            to = 3 * np.uint32(x)
            result[to] = np.uint8(line[low] + (line[high] - line[low]) * part + half)
            result[to + 1] = np.uint8(line[low + 1] + (line[high + 1] - line[low + 1]) * part + half)
            result[to + 2] = np.uint8(line[low + 2] + (line[high + 2] - line[low + 2]) * part + half)


@numba.njit(parallel=True, nogil=True)
def decode_frames(
    memory: np.ndarray,
    bounds: np.ndarray,
    cuts: np.ndarray,
    rows: np.ndarray,
    scratch: np.ndarray,
    lines: np.ndarray,
    clips: np.ndarray,
    failed: np.ndarray,
) -> None:
    """Decode, crop, resize and mirror the n * T frames of n clips in parallel.

    Args:
        memory: uint8, the mapped file.
        bounds: int64 (n, T, 2), start and end of the JPEG of each frame.
        cuts: int64 (n, 7): height and width of the stored frames; top, bottom, left, right of the crop; flip.
        rows: int64 (n,), the row of ``clips`` that each clip fills.
        scratch: uint8 buffer (threads, bytes of the largest stored frame).
        lines: float32 buffer (threads, 3 * width of the widest stored frame).
        clips: uint8 (batch, T, size, size, 3), filled.
        failed: uint8 (n, T), set to 1 for each frame that cannot be decoded.
    """
    frames = bounds.shape[1]
    for number in numba.prange(bounds.shape[0] * frames):
        clip, frame = number // frames, number % frames
        height, width, top, bottom, left, right, flip = cuts[clip]
        jpeg = memory[bounds[clip, frame, 0] : bounds[clip, frame, 1]]
        picture = scratch[numba.get_thread_id(), : height * width * 3].reshape((height, width, 3))
        if _imdecode(jpeg, picture, height, width, height, width, 0, 0, 1, 1, False, False) != 0:
            failed[clip, frame] = 1
        else:
            out = clips[rows[clip], frame]
            if min(bottom - top, right - left) > 2 * out.shape[0]:  # bilinear resizing would alias
                _resize_crop(picture, top, bottom, left, right, out)
                if flip:
                    out[:] = out[:, ::-1].copy()
            else:
                _resize_linear(picture, top, bottom, left, right, flip, lines[numba.get_thread_id()], out)

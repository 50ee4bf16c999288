"""What our clips look like inside an FFCV file, and how FFCV's C library decodes them. Importing this needs FFCV.

One field, ``clip``, a row a sample in the order of sample ids. The row names two regions of the file: the blob, which
is exactly the sample's KEY.jpgs (motionmae.data.shards.format), and a table of u32: the crc32 of each frame, then the first
frame of each window. The row ends in a crc32 over itself and the table, so that nothing is believed unchecked.

The decoding loop is compiled by numba on its first call (some seconds); ctypes functions cannot be cached on disk.
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

# Under TBB, which numba would prefer, a process with one CPU that has decoded in another thread than its first hangs at
# its exit: https://github.com/numba/numba/issues/10556
if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # type: ignore[attr-defined]

BETON_VERSION = 1
"""Changes when a reader of the former version would misread a file."""

FIELD = "clip"
"""Name of the field."""

ROW = np.dtype(
    [
        ("ptr", "<u8"),  # of the blob; the names ptr and size are those that FFCV's BytesDecoder reads
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
"""Metadata of a sample."""


class StoredClip(NamedTuple):
    """What the field encodes."""

    meta: SampleMeta
    blob: bytes
    """Content of KEY.jpgs."""
    checksums: list[int]
    """crc32 of each frame."""

    @property
    def table(self) -> bytes:
        """The u32 beside the blob."""
        return np.array([*self.checksums, *self.meta.windows], "<u4").tobytes()


def row_checksum(row: np.void, table: bytes) -> int:
    """crc32 over a row (but for its ``crc``) and its table."""
    return zlib.crc32(table, zlib.crc32(row.tobytes()[: ROW.fields["crc"][1]]))  # type: ignore[index]


class ClipField(Field):
    """FFCV's view of a stored video.

    Args:
        fingerprint: of the manifest whose samples the file holds.
        version: of this layout.
    """

    def __init__(self, fingerprint: str, version: int = BETON_VERSION):
        self.fingerprint = fingerprint
        self.version = version

    @property
    def metadata_type(self) -> np.dtype:
        """:data:`ROW`."""
        return ROW

    @staticmethod
    def from_binary(binary: np.ndarray) -> "ClipField":
        """Read the field's arguments out of the file's header.

        Raises:
            ValueError: they are not ours.
        """
        content = json.loads(binary.tobytes().rstrip(b"\0"))
        return ClipField(str(content["fingerprint"]), int(content["version"]))

    def to_binary(self) -> np.void:
        """The field's arguments as the file's header keeps them."""
        content = json.dumps({"fingerprint": self.fingerprint, "version": self.version}).encode()
        arguments = np.zeros(1, ARG_TYPE)[0]
        arguments[0][: len(content)] = np.frombuffer(content, np.uint8)
        return arguments

    def encode(
        self, destination: np.ndarray, clip: StoredClip, malloc: Callable[[int], tuple[int, np.ndarray]]
    ) -> None:
        """Put one sample into a page and its row into the table of samples."""
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
        """FFCV's own loader gets the undecoded blobs; :func:`decode_frames` is what cuts clips out of them."""
        return BytesDecoder


_imdecode = numba.njit(nogil=True)(imdecode)
_resize_crop = numba.njit(nogil=True)(resize_crop)


@numba.njit(nogil=True)
def _taps(source: int, target: int, flip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``target`` places the two of ``source`` that it lies between, and the second's share.

    Places and shares (in 1/2048) are those of OpenCV's bilinear resize; ``flip`` turns their row round.
    """
    first, second = np.empty(target, np.int32), np.empty(target, np.int32)
    share = np.empty(target, np.float32)
    for place in range(target):
        exact = min(max((place + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        number = target - 1 - place if flip else place
        first[number] = int(exact)
        second[number] = min(int(exact) + 1, source - 1)
        share[number] = np.float32(round((exact - int(exact)) * 2048) / 2048)
    return first, second, share


@numba.njit(nogil=True)
def _resize_linear(
    picture: np.ndarray, top: int, bottom: int, left: int, right: int, flip: int, line: np.ndarray, out: np.ndarray
) -> None:
    """Cut, resize and mirror as motionmae.data.jpeg does: FFCV's library can only average areas, at 8 times the cost.

    ``picture`` is (h, w, 3), ``out`` (size, size, 3), ``line`` float32 scratch of at least 3 * (right - left).
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


@numba.njit(nogil=True)
def _mirror(picture: np.ndarray) -> None:
    height, width, _ = picture.shape
    for y in range(height):
        for x in range(width // 2):
            for channel in range(3):
                left = picture[y, x, channel]
                picture[y, x, channel] = picture[y, width - 1 - x, channel]
                picture[y, width - 1 - x, channel] = left


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
    """Decode, crop, resize and mirror the frames of n clips, all n * T of them in parallel.

    Args:
        memory: uint8, the mapped file.
        bounds: int64 (n, T, 2), where each frame's JPEG begins and ends.
        cuts: int64 (n, 7): height and width of the stored frames; top, bottom, left, right of the crop; flip.
        rows: int64 (n,), the row of ``clips`` that each clip fills.
        scratch: uint8 (threads, most bytes of a stored frame).
        lines: float32 (threads, 3 * widest stored frame), scratch too.
        clips: uint8 (batch, T, size, size, 3), filled.
        failed: uint8 (n, T), 1 where a frame cannot be decoded.
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
            if min(bottom - top, right - left) > 2 * out.shape[0]:  # bilinear would alias
                _resize_crop(picture, top, bottom, left, right, out)
                if flip:
                    _mirror(out)
            else:
                _resize_linear(picture, top, bottom, left, right, flip, lines[numba.get_thread_id()], out)

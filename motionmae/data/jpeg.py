"""Decode stored frames into the pixels of a clip.

simplejpeg decodes a frame, down to the last row of the crop, into a scratch buffer of the thread. OpenCV then resizes
the crop directly into the batch. Both libraries release the GIL. Measured alternatives were slower or worse
(docs/measurements/notes/stored_frames.md): other decoders, scaled inverse DCTs, lossless cropping before decoding.
Chroma is upsampled without interpolation, which is 7 % faster and closer to ffmpeg's RGB of the same video (40.1
instead of 39.8 dB PSNR over Kinetics clips).
"""

import struct
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from motionmae.data.clip_sampling import Crop
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.reader import SampleMeta

cv2.setNumThreads(0)  # no threads within OpenCV, because the loader decodes clips in parallel

_FRAME_HEADER = b"\xff\xc0\x00\x11\x08"
"""Start of a header of a baseline JPEG of three components; height and width follow."""
_BLOCK_ROWS = 16  # rows of the blocks that a decoder handles together, with chroma of half the height
_UNREAD = "extraneous bytes before marker 0xd"
"""libjpeg's warning that data of further rows precedes the end of the image (0xd9) or a restart marker."""

_local = threading.local()


def _scratch(height: int, width: int) -> np.ndarray:
    """Return the calling thread's buffer (height, width, 3). The next call reuses its memory."""
    memory = getattr(_local, "memory", None)
    if memory is None or memory.size < height * width * 3:
        memory = _local.memory = np.empty(height * width * 3, np.uint8)
    return memory[: height * width * 3].reshape(height, width, 3)


def decode_frame(jpeg: bytes | memoryview, meta: SampleMeta, rows: int | None = None) -> np.ndarray:
    """Decode one stored frame to RGB (height, width, 3). The array is valid until this thread decodes the next frame.

    If ``rows`` is given, the rows below may be missing, and damage to them is not found. Raises CorruptSample if the
    frame does not decode to an image of the size in the index.
    """
    if meta.encoding == "raw":
        if len(jpeg) != 3 * meta.height * meta.width:
            raise CorruptSample(Reason.DECODE, meta.where, f"the raw picture has {len(jpeg)} bytes")
        return np.frombuffer(jpeg, np.uint8).reshape(meta.height, meta.width, 3)
    upper = _upper_part(jpeg, meta, rows) if rows else None
    scratch = _scratch(rows if rows and upper else meta.height, meta.width)
    try:
        picture = simplejpeg.decode_jpeg(upper or jpeg, "RGB", fastupsample=True, buffer=scratch)
    except ValueError as error:
        if upper and _UNREAD in str(error):  # the first complaint, and libjpeg has it after the last row
            return scratch
        raise CorruptSample(Reason.DECODE, meta.where, str(error)) from error
    if picture.shape != scratch.shape:
        detail = f"the picture has the shape {picture.shape}, the index says {scratch.shape}"
        raise CorruptSample(Reason.DECODE, meta.where, detail)
    return picture


def _upper_part(jpeg: bytes | memoryview, meta: SampleMeta, rows: int) -> bytearray | None:
    """Return a baseline JPEG with a header that says ``rows`` instead of the height, so that decoding stops there.

    Return None if this would save less than a row of blocks, or if the header is not that of a frame in the index.
    """
    if meta.height - rows < _BLOCK_ROWS:
        return None
    upper = bytearray(jpeg)
    header = upper.find(_FRAME_HEADER + struct.pack(">2H", meta.height, meta.width))
    if header < 0:
        return None
    struct.pack_into(">H", upper, header + len(_FRAME_HEADER), rows)
    return upper


class Target(NamedTuple):
    """Clip to fill."""

    frames: Sequence[int]
    """Number of the stored frame for each of the T frames of the clip."""
    crop: Crop
    out: np.ndarray  # contiguous uint8 (T, size, size, 3)


def decode_clips(jpegs: Mapping[int, bytes | memoryview], meta: SampleMeta, targets: Sequence[Target]) -> None:
    """Decode, crop, resize and mirror the frames of clips of one sample. A frame of several clips is decoded once.

    Resizing is bilinear, except that a crop shrinks to less than half by area averaging, because bilinear resizing
    would alias. Raises CorruptSample if a frame does not decode.
    """
    uses: dict[int, list[tuple[Target, int]]] = {}
    for target in targets:
        for position, number in enumerate(target.frames):
            uses.setdefault(number, []).append((target, position))
    for number, places in uses.items():
        bottom = max(target.crop.top + target.crop.height for target, _ in places)
        picture = decode_frame(jpegs[number], meta, bottom)
        filled: dict[int, int] = {}  # position of this frame in a clip, by the id of the target
        for target, position in places:
            first = filled.setdefault(id(target), position)
            if first != position:  # a short video repeats its last frame
                target.out[position] = target.out[first]
                continue
            _resize(picture, target.crop, target.out[position])


def _resize(picture: np.ndarray, crop: Crop, out: np.ndarray) -> None:
    size = len(out)
    method = cv2.INTER_AREA if min(crop.height, crop.width) > 2 * size else cv2.INTER_LINEAR
    part = picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    cv2.resize(part, (size, size), dst=out, interpolation=method)
    if crop.flip:
        cv2.flip(out, 1, dst=out)

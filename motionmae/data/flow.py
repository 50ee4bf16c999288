"""Stored optical flow (the paper's Table 7): the format of a flow field, and its crop.

A field is u16 height, u16 width, then zlib over int16 little-endian (height, width, 2). A vector (x, y) is the
displacement from a frame to the frame ``flow_distance`` source frames later, in units of 1/64 stored pixel. The grid of
vectors is coarser than the stored frame and covers the whole frame. zlib's checksum protects the bytes.
"""

import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np

from motionmae.data.shards.errors import CorruptSample, Reason

if TYPE_CHECKING:  # these imports would double the start time of data_tools' decoding processes
    from motionmae.data.clip_sampling import Crop
    from motionmae.data.shards.reader import SampleMeta

_UNITS = 64  # units per pixel: 16 bits then hold up to 512 pixels
_SIZE = struct.Struct("<HH")


def encode_flow(flow: np.ndarray, reduction: int = 4) -> bytes:
    """Pack the flow of one frame, float (height, width, 2) in pixels of the stored frame, for a shard.

    Vectors are averaged over squares of ``reduction`` x ``reduction`` pixels.
    """
    height, width = (max(1, round(side / reduction)) for side in flow.shape[:2])
    coarse = cv2.resize(flow.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    units = np.clip(np.rint(coarse * _UNITS), -(2**15), 2**15 - 1).astype("<i2")
    return _SIZE.pack(height, width) + zlib.compress(units.tobytes(), level=1)


def decode_flow(content: bytes | memoryview, meta: "SampleMeta", crop: "Crop", out: np.ndarray) -> None:
    """Unpack one flow field into ``out``, float16 (size, size, 2), cropped and resized like the frames of the clip.

    The vectors are scaled to pixels of the clip. A flip negates x. Raises CorruptSample if the field is damaged.
    """
    try:
        height, width = _SIZE.unpack_from(content)
        if not (1 <= height <= meta.height and 1 <= width <= meta.width):
            raise ValueError(f"{height} x {width} vectors for a frame of {meta.height} x {meta.width} pixels")
        size = height * width * 4
        plain = zlib.decompressobj()
        units = np.frombuffer(plain.decompress(content[_SIZE.size :], size), "<i2").reshape(height, width, 2)
        if not plain.eof and plain.decompress(plain.unconsumed_tail, 1):
            raise ValueError(f"more than {size} bytes")
        if not plain.eof:
            raise ValueError("the end is missing")
    except (struct.error, zlib.error, ValueError) as error:
        raise CorruptSample(Reason.CHECKSUM, meta.where, f"KEY.flow: {error}") from error
    size = out.shape[0]
    shrink_x, shrink_y = width / meta.width, height / meta.height
    step_x, step_y = crop.width / size, crop.height / size  # stored pixels per clip pixel
    # centre of clip pixel (0, 0) in grid coordinates of the field, and the distance to the next clip pixel
    first_x, first_y = (crop.left + step_x / 2) * shrink_x - 0.5, (crop.top + step_y / 2) * shrink_y - 0.5
    right = step_x * shrink_x
    if crop.flip:
        first_x, right = first_x + right * (size - 1), -right
    to_field = np.array([[right, 0, first_x], [0, step_y * shrink_y, first_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    field = units.astype(np.float32)
    cut = cv2.warpAffine(field, to_field, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    sign = -1 if crop.flip else 1
    np.multiply(cut, np.array([sign / step_x, 1 / step_y], np.float32) / _UNITS, out=out, casting="same_kind")

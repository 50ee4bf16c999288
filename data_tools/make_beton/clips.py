"""Samples of shards in the form in which a .beton stores them: unchanged, as pixels, or as smaller pixels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import simplejpeg
import xxhash

from data_tools.frames import stored_size
from motionmae.data.ffcv.format import StoredClip
from motionmae.data.jpeg import decode_frame
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.format import pack_frames
from motionmae.data.shards.reader import SampleMeta, ShardReader


class FrameForm(NamedTuple):
    """Form of the frames in a .beton."""

    raw: bool = False  # pixels instead of the encoding of the shards
    short_side: int = 0  # pixels of the shorter side, of larger frames; 0: all frames keep their size

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of a stored frame."""
        if not self.short_side:
            return height, width
        width, height = stored_size(width, height, self.short_side)
        return height, width

    def bytes(self, frames: int, height: int, width: int) -> int:
        """Return the bytes of the pixels of a sample."""
        height, width = self.size(height, width)
        return 3 * frames * height * width


class Clips:
    """Samples in the order of their ids, as FFCV's writer reads them. Every frame is checked."""

    def __init__(self, reader: ShardReader, form: FrameForm, advance: Callable[[], None]):
        self._reader, self._form, self._advance = reader, form, advance

    def __getitem__(self, sample: int) -> tuple[StoredClip]:
        """Return a sample as a tuple of one field. Raise CorruptSample if a frame is damaged or has another size."""
        meta = self._reader.read_meta(sample)
        frames: Sequence[bytes | memoryview] = self._reader.read_frames(sample, range(meta.frames))
        if self._form.raw:
            height, width = self._form.size(meta.height, meta.width)
            frames = [_pixels(frame, meta, (height, width)) for frame in frames]
            meta = replace(meta, height=height, width=width)
        else:
            for number, jpeg in enumerate(frames):
                _check_jpeg(jpeg, meta, number)
        self._advance()
        return (StoredClip(meta, pack_frames(frames), [xxhash.xxh3_64_intdigest(frame) for frame in frames]),)


def _pixels(frame: bytes | memoryview, meta: SampleMeta, size: tuple[int, int]) -> bytes:
    """Decode a frame of shards, and shrink it to ``size`` (height, width) by area averaging."""
    picture = decode_frame(frame, meta)
    if picture.shape[:2] != size:
        picture = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    return picture.tobytes()


def _check_jpeg(jpeg: bytes | memoryview, meta: SampleMeta, number: int) -> None:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if (height, width) != (meta.height, meta.width):
            raise ValueError(f"{height} x {width} pixels, not {meta.height} x {meta.width}")
    except ValueError as error:
        raise CorruptSample(Reason.DECODE, meta.where, f"frame {number}: {error}") from error

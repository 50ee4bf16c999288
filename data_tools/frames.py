"""Encode decoded frames as upright JPEGs (or RGB pixels) of one size, and their optical flow.

swscale converts a frame once, from the decoder's format to full-range BT.601 planes of the stored size. The JPEG
encoder takes these planes directly, which is 1.2 times as fast as encoding RGB. If only the range changes and the size
does not (common copies of Kinetics are 340x256), a lookup table gives the same result in a third of the time.
"""

import functools
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from motionmae.data.flow import encode_flow

Plane = np.ndarray[tuple[int, int], np.dtype[np.uint8]]

_UPRIGHT = (False, 1, 1)
_UNSPECIFIED, _BT470BG, _SMPTE170M = 2, 5, 6  # ffmpeg's AVColorSpace; all three are treated as BT.601
_TV_BT601 = {
    (colour_range, matrix)
    for colour_range in (ColorRange.UNSPECIFIED, ColorRange.MPEG)
    for matrix in (_UNSPECIFIED, _BT470BG, _SMPTE170M)
}


class FrameEncoder:
    """Encoder of the frames of one video. The first frame determines size and rotation."""

    def __init__(self, short_side: int, quality: int, chroma: str = "420"):
        self.height = self.width = 0
        self._short_side, self._quality = short_side, quality
        self._layout = f"yuvj{chroma}p"  # 444 is a maximum: chroma is not stored larger than the video has it
        self._reformatter = VideoReformatter()
        self._orientation = _UPRIGHT
        self._widened: list[Plane] = []

    def scale(self, frame: VideoFrame) -> list[Plane]:
        """Return luma and chroma planes of a frame, upright, at the stored size. They are valid until the next call."""
        if not self.width:
            self._size = stored_size(frame.width, frame.height, self._short_side)
            self._orientation = _orientation(frame)
            if _has_half_chroma(frame, self._size[0]):
                self._layout = "yuvj420p"
            self.width, self.height = self._size[::-1] if self._orientation[0] else self._size
        if self._layout == "yuvj420p" and _only_range_changes(frame, self._size):
            planes = self._widen_range([_as_array(plane) for plane in frame.planes])
        else:
            planes = [
                _as_array(plane) for plane in _reformat(self._reformatter, frame, self._size, self._layout).planes
            ]
        return [self._rotate(plane) for plane in planes]

    def pixels(self, frame: VideoFrame) -> bytes:
        """Return upright RGB bytes (height, width, 3). :meth:`scale` must have been called before."""
        (plane,) = _reformat(self._reformatter, frame, self._size, "rgb24").planes
        rows = _as_array(plane, 3)
        return self._rotate(rows.reshape(len(rows), -1, 3)).tobytes()

    def encode(self, planes: Sequence[Plane]) -> bytes:
        """Return a JPEG of planes that :meth:`scale` returned."""
        return simplejpeg.encode_jpeg_yuv_planes(*planes, quality=self._quality)

    def _rotate(self, plane: Any) -> Any:
        if self._orientation == _UPRIGHT:
            return plane
        transpose, down, right = self._orientation
        upright = plane.swapaxes(0, 1) if transpose else plane
        return np.ascontiguousarray(upright[::down, ::right])

    def _widen_range(self, planes: Sequence[Plane]) -> list[Plane]:
        if not self._widened:
            self._widened = [np.empty(plane.shape, np.uint8) for plane in planes]  # reused: new memory doubles the cost
        for plane, table, out in zip(planes, _range_tables(), self._widened, strict=True):
            cv2.LUT(plane, table, dst=out)
        return self._widened


def _reformat(reformatter: VideoReformatter, frame: VideoFrame, size: tuple[int, int], layout: str) -> VideoFrame:
    return reformatter.reformat(
        frame,
        *size,
        format=layout,
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,  # full range, which JFIF requires
        interpolation=Interpolation.BICUBIC,  # the default of the ffmpeg program
        threads=1,
    )


def _only_range_changes(frame: VideoFrame, size: tuple[int, int]) -> bool:
    """Return whether swscale would only widen the range, and keep size, pixel layout and colour matrix."""
    same_layout = (frame.width, frame.height) == size and frame.format.name == "yuv420p"
    return same_layout and (frame.color_range, frame.colorspace) in _TV_BT601


def _has_half_chroma(frame: VideoFrame, width: int) -> bool:
    """Return whether the chroma planes of the decoder have at most half the stored width."""
    components = frame.format.components
    return len(components) < 3 or 2 * components[1].width <= width + 1  # of an odd width, half is rounded up


@functools.cache
def _range_tables() -> tuple[Plane, Plane, Plane]:
    """Return lookup tables with swscale's output for each value of luma and of the two chroma planes."""
    ramp = VideoFrame(512, 2, "yuv420p")
    for plane in ramp.planes:
        _as_array(plane)[:] = np.resize(np.arange(256), plane.width)
    luma, blue, red = _reformat(VideoReformatter(), ramp, (512, 2), "yuvj420p").planes
    return _as_array(luma)[0, :256].copy(), _as_array(blue)[0].copy(), _as_array(red)[0].copy()


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the stored (width, height), both even because chroma is subsampled. ``short_side`` is a maximum."""
    scale = min(1.0, short_side / min(width, height))
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def _as_array(plane: Any, channels: int = 1) -> Plane:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : channels * plane.width]


def _orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    """Return how to make a frame upright: whether to transpose it first, then the steps along y and x (-1 mirrors).

    The display matrix means x' = a x + c y and y' = b x + d y. Angles that are not multiples of 90 degrees are ignored.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        if min(abs(a), abs(d)) > 16 * max(abs(b), abs(c)):
            return False, -1 if d < 0 else 1, -1 if a < 0 else 1
        if min(abs(b), abs(c)) > 16 * max(abs(a), abs(d)):
            return True, -1 if b < 0 else 1, -1 if c < 0 else 1
    return _UPRIGHT


class FlowRecorder:
    """Recorder of optical flow from each stored frame to the frame ``distance`` >= 1 source frames later.

    Near the end of a video, the flow leads to the last frame. The method is OpenCV's dense inverse search (Kroeger et
    al. 2016). The paper's Table 7 uses flow as a target.
    """

    def __init__(self, distance: int):
        self._distance = distance
        self._waiting: deque[tuple[Plane, bool]] = deque()
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._fields: list[bytes] = []

    def add(self, luma: Plane, stored: bool) -> None:
        """Add the next source frame, uint8 (height, width). Raise cv2.error if a side is below about 16 pixels."""
        self._waiting.append((luma, stored))
        if len(self._waiting) > self._distance:
            self._compute_flow(luma)

    def take(self) -> list[bytes]:
        """Return the encoded flow fields of stored frames, in order, that are known since the last call."""
        fields, self._fields = self._fields, []
        return fields

    def finish(self) -> list[bytes]:
        """Return the flow fields of the stored frames at the end of the video."""
        while self._waiting:
            self._compute_flow(self._waiting[-1][0])
        return self.take()

    def _compute_flow(self, later: Plane) -> None:
        earlier, stored = self._waiting.popleft()
        if stored:
            flow = np.zeros((*earlier.shape, 2), np.float32)
            self._fields.append(encode_flow(self._search.calc(earlier, later, flow)))

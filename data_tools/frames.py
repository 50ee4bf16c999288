"""Encode decoded frames as upright JPEGs (or RGB pixels) of one size, and their optical flow.

swscale converts a frame once, from the decoder's format to full-range BT.601 planes of the stored size. The JPEG
encoder takes these planes directly, which is 1.2 times as fast as encoding RGB. If only the range changes and the size
does not (common copies of Kinetics are 340x256), a lookup table gives the same result in a third of the time.
"""

import functools
from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from motionmae.data.flow import encode_flow
from motionmae.data.shards.limits import MAX_SIDE
from motionmae.data.video.video_frames import (
    UPRIGHT,
    Plane,
    UnsupportedFrame,
    as_array,
    find_orientation,
    rescale,
    rescale_to_rgb,
)

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
        self._orientation = UPRIGHT
        self._widened: list[Plane] = []

    def scale(self, frame: VideoFrame) -> list[Plane]:
        """Return luma and chroma planes of a frame, upright, at the stored size. They are valid until the next call."""
        if not self.width:
            self._size = stored_size(frame.width, frame.height, self._short_side)
            self._orientation = find_orientation(frame)
            if _has_half_chroma(frame, self._size[0]):
                self._layout = "yuvj420p"
            self.width, self.height = self._size[::-1] if self._orientation.transpose else self._size
        if self._layout == "yuvj420p" and _only_range_changes(frame, self._size):
            planes = self._widen_range([as_array(plane) for plane in frame.planes])
        else:
            planes = [as_array(plane) for plane in rescale(self._reformatter, frame, self._size, self._layout).planes]
        return [self._orientation.make_upright(plane) for plane in planes]

    def pixels(self, frame: VideoFrame) -> bytes:
        """Return upright RGB bytes (height, width, 3). :meth:`scale` must have been called before."""
        return self._orientation.make_upright(rescale_to_rgb(self._reformatter, frame, self._size)).tobytes()

    def encode(self, planes: Sequence[Plane]) -> bytes:
        """Return a JPEG of planes that :meth:`scale` returned."""
        return simplejpeg.encode_jpeg_yuv_planes(*planes, quality=self._quality)

    def _widen_range(self, planes: Sequence[Plane]) -> list[Plane]:
        if not self._widened:
            self._widened = [np.empty(plane.shape, np.uint8) for plane in planes]  # reused: new memory doubles the cost
        for plane, table, out in zip(planes, _range_tables(), self._widened, strict=True):
            cv2.LUT(plane, table, dst=out)
        return self._widened


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
        as_array(plane)[:] = np.resize(np.arange(256), plane.width)
    luma, blue, red = rescale(VideoReformatter(), ramp, (512, 2), "yuvj420p").planes
    return as_array(luma)[0, :256].copy(), as_array(blue)[0].copy(), as_array(red)[0].copy()


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the stored (width, height), both even because chroma is subsampled. ``short_side`` is a maximum."""
    scale = min(1.0, short_side / min(width, height))
    stored = max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))
    if max(stored) > MAX_SIDE:
        sizes = f"frames of {width} x {height} pixels would be stored as {stored[0]} x {stored[1]}"
        raise UnsupportedFrame(f"{sizes}, and a shard takes at most {MAX_SIDE} a side")
    return stored


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

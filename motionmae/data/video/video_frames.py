"""Frames of an open video, as the scaler of FFmpeg needs them to give what the ffmpeg program gives.

swscale of FFmpeg 8 differs from the ffmpeg program, decord and torchcodec in three points, which are undone here. It
scales each field of an interlaced frame by itself, which leaves comb lines. It refuses frames with unusual matrix
coefficients. It reads big-endian RGB of 16 bits wrongly, and makes white of RGB of 16 bits grey.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

_SCALABLE_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})  # AVColorSpace: sws_test_colorspace() of FFmpeg 8 accepts them
_BT2020_CONSTANT_LUMINANCE = 10
_MATRIX_NAMES = {
    **{3: "reserved", 8: "ycgco", 10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c"},
    **{14: "ictcp", 15: "ipt-c2", 16: "ycgco-re", 17: "ycgco-ro"},
}
_RGB_OF_16_BITS = re.compile(r"((?:rgb|bgr)5[56]5)[lb]e")

Plane = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


class NoVideoStream(Exception):  # noqa: N818 - names a property of the file, not a failure of the program
    """A file has only sound, only a cover picture, or no stream. The message is a clause without the file's name."""


class NoDecoder(Exception):  # noqa: N818 - names a property of the file, not a failure of the program
    """There is no decoder for the video stream. The message is a clause without the file's name."""


class UnsupportedFrame(Exception):  # noqa: N818 - names a property of the file, not a failure of the program
    """The size or the pixel format of a frame is not supported. The message is a clause without the file's name."""


@dataclass
class DecodingNotes:
    """Notes on the decoding of one video."""

    errors: list[str | None] = field(default_factory=list)  # one for each packet that does not decode
    matrices: dict[str, str] = field(default_factory=dict)  # name of unusual coefficients to those that are used


def video_stream(container: Any) -> VideoStream:
    """Return the video stream that ffmpeg would choose. A cover picture does not count as video.

    Raises NoVideoStream or NoDecoder.
    """
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        kinds = ", ".join(sorted(stream.type for stream in container.streams)) or "none"
        raise NoVideoStream(f"streams of the file: {kinds}")
    if stream.codec_context is None:
        raise NoDecoder("there is no decoder for the video stream")
    stream.codec_context.thread_count = 1  # the result for damaged packets depends on the number of threads
    return stream


def decode_frames(container: Any, stream: VideoStream, notes: DecodingNotes) -> Iterator[VideoFrame]:
    """Yield all frames that decode. Skip damaged packets, as the ffmpeg program does, and note their errors."""
    prepare = _FramePreparation(notes)
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the container cannot be read further
            notes.errors.append(error.strerror)
            packet = None
        try:
            yield from map(prepare, stream.codec_context.decode(packet))  # None flushes the decoder
        except av.EOFError:  # the decoder was already flushed
            return
        except av.FFmpegError as error:
            notes.errors.append(error.strerror)
        if packet is None:
            return


class _FramePreparation:
    """Preparation of frames for swscale. Frames that need none, which are nearly all, are returned as they are."""

    def __init__(self, notes: DecodingNotes):
        self._notes = notes
        self._graph: Graph | None = None
        self._graph_input: tuple[int, int, str] = (0, 0, "")
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        if frame.colorspace not in _SCALABLE_MATRICES:
            self._replace_matrix(frame)
        if frame.interlaced_frame:
            frame = self._clear_interlaced(frame)
        if rgb := _RGB_OF_16_BITS.fullmatch(frame.format.name):
            for layout in (f"{rgb[1]}le", "rgb24"):  # these two steps are exact
                frame = self._reformatter.reformat(frame, format=layout, threads=1)
        return frame

    def _replace_matrix(self, frame: VideoFrame) -> None:
        """Replace the coefficients as ffmpeg 5 does."""
        name = _MATRIX_NAMES.get(frame.colorspace, f"number {frame.colorspace}")
        is_bt2020 = frame.colorspace == _BT2020_CONSTANT_LUMINANCE
        self._notes.matrices[name] = "bt2020" if is_bt2020 else "bt601"
        frame.colorspace = Colorspace.BT2020 if is_bt2020 else Colorspace.ITU601

    def _clear_interlaced(self, frame: VideoFrame) -> VideoFrame:
        """Return the frame without its flag. The filter does not copy pixels."""
        shape = (frame.width, frame.height, frame.format.name)
        if self._graph is None or shape != self._graph_input:
            self._graph, self._graph_input = Graph(), shape
            self._graph.threads = 1
            time_base = frame.time_base or Fraction(1, 25)
            source = self._graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=time_base)
            sink = self._graph.add("buffersink")
            self._graph.link_nodes(source, self._graph.add("setfield", "mode=prog"), sink).configure()
        self._graph.vpush(frame)
        return self._graph.vpull()


def rescale(reformatter: VideoReformatter, frame: VideoFrame, size: tuple[int, int], layout: str) -> VideoFrame:
    """Scale a frame to (width, height) and convert it to full-range BT.601, as the ffmpeg program does by default."""
    try:
        return reformatter.reformat(
            frame,
            *size,
            format=layout,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.JPEG,  # full range, which JFIF requires
            interpolation=Interpolation.BICUBIC,  # the default of the ffmpeg program
            threads=1,
        )
    except av.FFmpegError as error:
        frames = f"frames of {frame.width} x {frame.height} pixels in the format {frame.format.name}"
        raise UnsupportedFrame(f"{frames} cannot be scaled to {size[0]} x {size[1]}: {error.strerror}") from error


def rescale_to_rgb(reformatter: VideoReformatter, frame: VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Scale a frame to (width, height) as uint8 (height, width, 3)."""
    rows = as_array(rescale(reformatter, frame, size, "rgb24").planes[0], 3)
    return rows.reshape(len(rows), -1, 3)


def as_array(plane: Any, channels: int = 1) -> Plane:
    """Return the pixels of a plane as (height, channels * width), without a copy and without the padding."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : channels * plane.width]


@dataclass(frozen=True)
class Orientation:
    """Way to make a frame upright: transpose it first if so, then take the rows and columns in these steps."""

    transpose: bool = False
    down: int = 1  # -1 mirrors
    right: int = 1

    def make_upright(self, picture: Any) -> Any:
        """Return (H, W) or (H, W, channels) upright, as a contiguous copy unless it is upright already."""
        if self == UPRIGHT:
            return picture
        rotated = picture.swapaxes(0, 1) if self.transpose else picture
        return np.ascontiguousarray(rotated[:: self.down, :: self.right])


UPRIGHT = Orientation()
_BY_ANGLE = {
    -90: Orientation(True, 1, -1),
    90: Orientation(True, -1, 1),
    180: Orientation(False, -1, -1),
    -180: Orientation(False, -1, -1),
}
"""Orientation by the counter-clockwise angle in degrees."""


def find_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation that the frame's display matrix says.

    The matrix means x' = a x + c y and y' = b x + d y. Angles that are not multiples of 90 degrees are ignored.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 does not know the EXIF data of a photo, and then only gives the angle
        return _BY_ANGLE.get(round(frame.rotation), UPRIGHT)
    if matrix is not None:
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        if min(abs(a), abs(d)) > 16 * max(abs(b), abs(c)):
            return Orientation(False, -1 if d < 0 else 1, -1 if a < 0 else 1)
        if min(abs(b), abs(c)) > 16 * max(abs(a), abs(d)):
            return Orientation(True, -1 if b < 0 else 1, -1 if c < 0 else 1)
    return UPRIGHT

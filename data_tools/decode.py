"""Decode one video file into upright JPEG frames, as one sample or as several segments.

The frames match the output of the ffmpeg program, which chooses the same video stream, outputs every frame, skips
damaged packets, and applies edit lists and rotation. Sample aspect ratios are ignored, as in decord, torchcodec and the
published preprocessing of Kinetics.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import cv2
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_tools.frames import FlowRecorder, FrameEncoder, UnsupportedFrame
from data_tools.segments import MAX_GAP_SECONDS, Clock, Part, Segment, Segmenter, StoredFrame
from data_tools.size_limit import SizeLimit, frames_of_header
from motionmae.data.video.open_video import RefusedFormat, open_video
from motionmae.data.video.video_frames import DecodingNotes, NoDecoder, NoVideoStream, decode_frames, video_stream
from motionmae.errors import UserError, check_limits

if TYPE_CHECKING:  # pydantic would add to the start time of the decoding processes
    from motionmae.data.shards.manifest import Chroma

MAX_STORED_BYTES = 2**30
"""Limit on the bytes of the stored frames and flows of a sample. Readers limit it to 4 GiB."""

_MAX_RATE = 1000  # frames per second; a larger rate is the unit of the timestamps, such as 1/90000 s
_READ_BYTES = 1 << 20


class QuarantineReason(StrEnum):
    """Reason why a video is quarantined, i.e. not stored."""

    MISSING = "missing"  # the annotations name the video, but the file does not exist
    EMPTY = "empty"  # the file has no bytes
    UNREADABLE = "unreadable"  # the file system reports an error
    NOT_A_VIDEO = "not_a_video"  # the container format is unknown, or its header is lost
    REFUSED_FORMAT = "refused_format"  # a playlist, a text, a picture or the like (motionmae.data.video.open_video)
    NO_VIDEO_STREAM = "no_video_stream"  # the file has only sound, only a cover picture, or no stream
    NO_FRAMES = "no_frames"  # no frame of the video stream decodes (damaged, encrypted, or truncated too early)
    UNKNOWN_CODEC = "unknown_codec"  # there is no decoder for the video stream
    UNSUPPORTED_FRAME = "unsupported_frame"  # the size or the pixel format of the frames cannot be stored
    NO_FLOW = "no_flow"  # the frames are too small for optical flow
    TOO_LONG = "too_long"  # the stored frames exceed MAX_STORED_BYTES; segments and windows of the video would not
    TIMEOUT = "timeout"  # the stall timeout passed without a frame, and the decoding process was killed
    CRASHED = "crashed"  # the decoding process died or raised an unexpected exception


_REASONS: dict[type[Exception], QuarantineReason] = {
    RefusedFormat: QuarantineReason.REFUSED_FORMAT,
    NoVideoStream: QuarantineReason.NO_VIDEO_STREAM,
    NoDecoder: QuarantineReason.UNKNOWN_CODEC,
    UnsupportedFrame: QuarantineReason.UNSUPPORTED_FRAME,
}


@dataclass(eq=False)
class UndecodableVideo(Exception):  # noqa: N818 - names a property of the file, not a failure of the program
    """Error for a video that cannot be stored and must be quarantined."""

    reason: QuarantineReason
    detail: str


@dataclass(frozen=True)
class FrameSettings:
    """Settings that determine how videos are stored. Every field changes the bytes of a shard."""

    short_side: int = 256  # pixels; smaller videos keep their size, because the loader resizes its crops anyway
    quality: int = 90  # JPEG quality, 1 to 100
    chroma: "Chroma" = "420"  # subsampling: 420, or 444 (none) for videos that have more than half the stored columns
    stride: int = 1  # every ``stride``-th source frame is stored
    clips: int = 0  # number of stored windows (parts) of each video, evenly spaced; 0 stores the whole video
    window: int = 64  # length of a stored window in source frames (64 are 16 frames at stride 4)
    flow: int = 0  # distance of optical flow in source frames; 0 stores no flow
    raw: bool = False  # whether RGB pixels replace JPEGs, which takes about 13 times the bytes
    segment_seconds: float = 0  # length of the segments that are samples of their own; 0: a video is one sample
    images: bool = False  # whether pictures are stored too, each as a sample of one frame

    def __post_init__(self) -> None:
        check_limits(self, {"short_side": (16, 8192), "quality": (1, 100), "stride": (1, 1000)})
        check_limits(self, {"clips": (0, 1000), "window": (1, 100_000), "flow": (0, 1000)})
        if self.segment_seconds != 0:
            check_limits(self, {"segment_seconds": (1, 86400)})
        if self.segment_seconds and self.clips:
            raise UserError(
                "--segment-seconds stores all of a video and --clips only windows of it: give one of the two"
            )
        if self.window < self.stride:
            raise UserError(f"--window {self.window} is shorter than --stride {self.stride}: choose a longer window")


@dataclass(frozen=True)
class DecodedVideo:
    """Frames of one video, or of one segment of it, encoded for a shard."""

    jpegs: Collection[bytes]  # baseline JPEGs, all of one even height and width; with ``raw``, RGB pixels
    times: list[float]  # seconds from the first frame of the video to each stored frame, strictly increasing
    fps: float  # average frame rate of the source
    height: int
    width: int
    windows: list[int]  # index of the first stored frame of each stored window
    source_frames: int  # number of decoded frames, stored or not
    damaged_packets: int  # number of packets that could not be decoded
    flows: Collection[bytes]  # optical flow of each stored frame (motionmae.data.flow); empty if flow is not stored
    matrices: dict[str, str] = field(default_factory=dict)
    """Unusual matrix coefficients to those used in their place (motionmae.data.video.video_frames)."""
    segment: int = 0  # number of the segment within the video
    is_last: bool = True  # whether the video ends with this segment
    source: str = ""  # path of the decoded file within its data set; set by the writer


class FrameChunk(NamedTuple):
    """Further frames of the sample that is being decoded. They come before its :class:`DecodedVideo`."""

    jpegs: list[bytes]
    flows: list[bytes]


class Discard:
    """Message that the chunks so far do not count, because the video is decoded again."""


Message = FrameChunk | Discard | DecodedVideo


def decode_in_chunks(
    path: Path, settings: FrameSettings, on_frame: Callable[[], None] = lambda: None
) -> Iterator[Message]:
    """Decode a video once from front to back, and encode the frames to store. Little of it is in memory at a time.

    The frames of a sample come in chunks, then a DecodedVideo without frames ends the sample. Each segment is a sample.

    The positions of windows depend on the number of frames. The packets are therefore counted first, which is cheap.
    If the file is damaged and has more packets than decoded frames, it is decoded a second time.

    Args:
        on_frame: called after each decoded frame and while packets are counted, to show that the decoder is alive.

    Raises:
        UndecodableVideo: no frame can be stored, or the rest of the video cannot be decoded.
    """
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise UndecodableVideo(QuarantineReason.EMPTY, "the file has no bytes")
        if not settings.clips:
            yield (yield from _decode(path, settings, on_frame))
            return
        expected = _count_packets(path, on_frame, settings.images)
        decoded = yield from _decode(path, settings, on_frame, expected)
        if decoded.source_frames != expected:
            yield Discard()
            decoded = yield from _decode(path, settings, on_frame, decoded.source_frames)
        yield decoded
    except cv2.error as error:
        raise UndecodableVideo(QuarantineReason.NO_FLOW, f"optical flow failed: {error.err}") from error
    except tuple(_REASONS) as error:
        raise UndecodableVideo(_REASONS[type(error)], str(error)) from error
    except (OSError, av.FFmpegError) as error:
        if disk_error := _read_to_end(path, on_frame):
            raise UndecodableVideo(QuarantineReason.UNREADABLE, str(disk_error)) from error
        raise UndecodableVideo(QuarantineReason.NOT_A_VIDEO, f"the file does not open: {error.strerror}") from error


def _read_to_end(path: Path, on_progress: Callable[[], None]) -> OSError | None:
    """Read a file without FFmpeg, whose errno may be a demuxer's. Return the error of the file system, if any."""
    try:
        size = path.stat().st_size  # of a device 0
        with path.open("rb", buffering=0) as file:
            for _ in range(0, size, _READ_BYTES):
                file.read(_READ_BYTES)
                on_progress()
    except OSError as error:
        return error
    return None


def _count_packets(path: Path, on_progress: Callable[[], None], images: bool = False) -> int:
    """Count the packets, i.e. the frames of an undamaged file. Call ``on_progress`` whenever reading moves forward."""
    count = farthest = 0
    with open_video(path, images) as container, contextlib.suppress(av.FFmpegError):  # the decoding pass records damage
        for packet in container.demux(video_stream(container)):
            count += packet.size > 0 and not packet.is_discard
            if packet.pos is not None and packet.pos > farthest:
                farthest = packet.pos
                on_progress()
    return count


def _decode(
    path: Path, settings: FrameSettings, on_frame: Callable[[], None], expected: int = 0
) -> Generator[Message, None, DecodedVideo]:
    """Decode the video in one pass, and return its last sample. Only windows need the number of ``expected`` frames."""
    selected, windows = _select_frames(expected, settings)
    one = _Pass(settings, frozenset(selected) if settings.clips else None, on_frame)
    size = 0
    with open_video(path, settings.images) as container:
        stream = video_stream(container)
        rates = stream.average_rate, stream.guessed_rate
        to_store = len(selected) if settings.clips else -(-frames_of_header(container, stream) // settings.stride)
        limit = _size_limit(path, settings, to_store, on_frame)
        clock = Clock(*rates)
        segmenter = _segmenter(settings, clock)
        for frame in one.stored_frames(container, stream, clock):
            for part in segmenter.add(frame):
                yield one.message(part)
            size += frame.size
            if limit and (excess := limit.find_excess(size, one.stored)):
                raise UndecodableVideo(QuarantineReason.TOO_LONG, excess)
    if not one.count:
        errors = one.notes.errors
        detail = f"{len(errors)} packets do not decode: {errors[-1]}" if errors else "the file holds no frame"
        raise UndecodableVideo(QuarantineReason.NO_FRAMES, detail)
    *parts, last = map(one.message, segmenter.finish(one.count, len(one.notes.errors)))
    yield from parts
    assert isinstance(last, DecodedVideo)
    if settings.segment_seconds:
        return last
    times, fps = _frame_times(one.times, *rates)
    return replace(last, times=[times[number] for number in one.numbers], fps=fps, windows=windows)


def _segmenter(settings: FrameSettings, clock: Clock) -> Segmenter:
    """Return the cutter of a video. Without segments, the whole video is one segment."""
    if settings.segment_seconds:
        return Segmenter(settings.segment_seconds, MAX_STORED_BYTES, clock.step)
    return Segmenter(math.inf, math.inf, clock.step)


def _size_limit(path: Path, settings: FrameSettings, to_store: int, on_frame: Callable[[], None]) -> SizeLimit | None:
    """Return the check of the size of a video that is one sample. A segment ends before it exceeds the limit."""
    if settings.segment_seconds:
        return None

    def count_exactly() -> int:
        return -(-_count_packets(path, on_frame, settings.images) // settings.stride)

    is_raw = settings.raw and not settings.flow
    return SizeLimit(MAX_STORED_BYTES, to_store, None if settings.clips else count_exactly, is_raw)


class _Pass:
    """One pass over a video: what it encodes and counts."""

    def __init__(self, settings: FrameSettings, selected: frozenset[int] | None, on_frame: Callable[[], None]):
        self._settings, self._selected, self._on_frame = settings, selected, on_frame
        self._encoder = FrameEncoder(settings.short_side, settings.quality, settings.chroma)
        self._flow = FlowRecorder(settings.flow) if settings.flow else None
        self._waiting: deque[StoredFrame] = deque()  # stored frames whose flow is not known yet
        self.count = 0  # decoded frames, stored or not
        self.stored = 0
        self.numbers: list[int] = []  # of the stored frames
        self.times: list[float | None] = []  # of all frames; without segments, whose frames have the times of a Clock
        self.notes = DecodingNotes()

    def stored_frames(self, container: Any, stream: VideoStream, clock: Clock) -> Iterator[StoredFrame]:
        """Decode the video, and yield the frames to store in order, each when its flow is known."""
        for frame in decode_frames(container, stream, self.notes):
            self._add(frame, clock)
            self._on_frame()
            yield from self._complete(self._flow.take() if self._flow else [])
        yield from self._complete(self._flow.finish() if self._flow else [])

    def _add(self, frame: VideoFrame, clock: Clock) -> None:
        settings, encoder, flow = self._settings, self._encoder, self._flow
        is_stored = self.count % settings.stride == 0 if self._selected is None else self.count in self._selected
        if (is_stored and not settings.raw) or flow or not self.count:  # the first frame sets the size
            planes = encoder.scale(frame)
        time = clock.time(frame.time)
        if is_stored:
            content = encoder.pixels(frame) if settings.raw else encoder.encode(planes)
            self._waiting.append(StoredFrame(self.count, time, len(self.notes.errors), content))
        if flow:
            flow.add(planes[0].copy(), is_stored)  # scale() reuses the plane's memory
        if not settings.segment_seconds:
            self.times.append(frame.time)
            self.numbers += [self.count] * is_stored
        self.count += 1
        self.stored += is_stored

    def _complete(self, flows: list[bytes]) -> Iterator[StoredFrame]:
        if self._flow is None:
            while self._waiting:
                yield self._waiting.popleft()
        for flow in flows:
            yield self._waiting.popleft()._replace(flow=flow)

    def message(self, part: Part) -> FrameChunk | DecodedVideo:
        if not isinstance(part, Segment):
            flows = [frame.flow for frame in part] if self._flow else []
            return FrameChunk([frame.content for frame in part], flows)
        return DecodedVideo(
            jpegs=[],
            times=part.times,
            fps=part.fps,
            height=self._encoder.height,
            width=self._encoder.width,
            windows=[0],
            source_frames=part.source_frames,
            damaged_packets=part.damaged_packets,
            flows=[],
            matrices=dict(self.notes.matrices),
            segment=part.number,
            is_last=part.is_last,
        )


def _frame_times(
    times: list[float | None], average_rate: Fraction | None, guessed_rate: Fraction | None = None
) -> tuple[list[float], float]:
    """Return the seconds from the first frame to each frame, and the average frame rate.

    The container's timestamps are used if they increase in each microsecond's rounding, never by more than
    MAX_GAP_SECONDS, and on average by more than 1 / _MAX_RATE. Otherwise (packed B-frames in AVI, raw streams without
    timestamps, a clock that jumps or is too fast) frames are placed ``1 / rate`` apart. The default rate is 25, as in
    ffmpeg.
    """
    known = [time for time in times if time is not None]
    seconds = [round(time - known[0], 6) for time in known]
    gaps = [later - earlier for earlier, later in pairwise(seconds)]
    if len(known) == len(times) > 1 and all(0 < gap <= MAX_GAP_SECONDS for gap in gaps):
        fps = (len(seconds) - 1) / (known[-1] - known[0])
        if fps < _MAX_RATE:
            return seconds, round(fps, 6)
    rates = [average_rate, guessed_rate]
    if any(abs(gap) > MAX_GAP_SECONDS for gap in gaps):  # the average includes the jump
        rates.reverse()
    likely = (float(rate) for rate in rates if rate and 1 / MAX_GAP_SECONDS < rate < _MAX_RATE)
    fps = next(likely, 25.0)
    return [round(index / fps, 6) for index in range(len(times))], round(fps, 6)


def _select_frames(total: int, settings: FrameSettings) -> tuple[list[int], list[int]]:
    """Return the source frames to store, and the index in this list of each window's first frame.

    A video that is not longer than all windows together is stored whole.
    """
    clips, window, stride = settings.clips, settings.window, settings.stride
    if clips == 0 or total <= clips * window:
        return list(range(0, total, stride)), [0]
    slack = total - window
    firsts = [slack // 2] if clips == 1 else [index * slack // (clips - 1) for index in range(clips)]
    starts = [-(-first // stride) * stride for first in firsts]
    length = window // stride
    selected = [frame for start in starts for frame in range(start, start + length * stride, stride)]
    return selected, [index * length for index in range(clips)]

"""Decode one video file into upright JPEG frames.

The frames match the output of the ffmpeg program, which chooses the same video stream, outputs every frame, skips
damaged packets, and applies edit lists and rotation. Sample aspect ratios are ignored, as in decord, torchcodec and the
published preprocessing of Kinetics.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2

from data_tools.frames import FlowRecorder, FrameEncoder, UnsupportedFrame
from motionmae.data.open_video import RefusedFormat, open_video
from motionmae.data.video_frames import DecodingNotes, NoDecoder, NoVideoStream, decode_frames, video_stream
from motionmae.errors import UserError, check_limits

if TYPE_CHECKING:  # pydantic would add to the start time of the decoding processes
    from motionmae.data.shards.manifest import Chroma

MAX_STORED_BYTES = 2**30
"""Limit on the bytes of a video's stored frames, which stay in memory until the whole video is decoded."""


MAX_GAP_SECONDS = 3600.0
"""Longest possible time between two frames. The clock of a camera has jumped if its timestamps differ by more."""
_MAX_RATE = 1000  # frames per second; headers with more give the unit of their timestamps, such as 1/90000 s
_READ_BYTES = 1 << 20


class QuarantineReason(StrEnum):
    """Reason why a video is quarantined, i.e. not stored."""

    MISSING = "missing"  # the annotations name the video, but the file does not exist
    EMPTY = "empty"  # the file has no bytes
    UNREADABLE = "unreadable"  # the file system reports an error
    NOT_A_VIDEO = "not_a_video"  # the container format is unknown, or its header is lost
    REFUSED_FORMAT = "refused_format"  # a playlist, a text, a picture or the like (motionmae.data.open_video)
    NO_VIDEO_STREAM = "no_video_stream"  # the file has only sound, only a cover picture, or no stream
    NO_FRAMES = "no_frames"  # no frame of the video stream decodes (damaged, encrypted, or truncated too early)
    UNKNOWN_CODEC = "unknown_codec"  # there is no decoder for the video stream
    UNSUPPORTED_FRAME = "unsupported_frame"  # the size or the pixel format of the frames cannot be stored
    NO_FLOW = "no_flow"  # the frames are too small for optical flow
    TOO_LONG = "too_long"  # the stored frames exceed MAX_STORED_BYTES
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

    def __post_init__(self) -> None:
        check_limits(self, {"short_side": (16, 8192), "quality": (1, 100), "stride": (1, 1000)})
        check_limits(self, {"clips": (0, 1000), "window": (1, 100_000), "flow": (0, 1000)})
        if self.window < self.stride:
            raise UserError(f"--window {self.window} is shorter than --stride {self.stride}: choose a longer window")


@dataclass(frozen=True)
class DecodedVideo:
    """Frames of one video, encoded for a shard."""

    jpegs: list[bytes]  # baseline JPEGs, all of one even height and width; with ``raw``, RGB pixels
    times: list[float]  # seconds from the first frame of the video to each stored frame, strictly increasing
    fps: float  # average frame rate of the source
    height: int
    width: int
    windows: list[int]  # index of the first stored frame of each stored window
    source_frames: int  # number of decoded frames, stored or not
    damaged_packets: int  # number of packets that could not be decoded
    flows: list[bytes]  # optical flow of each stored frame (motionmae.data.flow); empty if flow is not stored
    matrices: dict[str, str]  # unusual matrix coefficients to those used in their place (motionmae.data.video_frames)
    source: str = ""  # path of the decoded file within its data set; set by the writer


def decode_video(path: Path, settings: FrameSettings, on_frame: Callable[[], None] = lambda: None) -> DecodedVideo:
    """Decode a video and encode the frames to store.

    The positions of windows depend on the number of frames. The packets are therefore counted first, which is cheap.
    If the file is damaged and has more packets than decoded frames, it is decoded a second time.

    Args:
        on_frame: called after each decoded frame and while packets are counted, to show that the decoder is alive.

    Raises:
        UndecodableVideo: no frame can be stored.
    """
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise UndecodableVideo(QuarantineReason.EMPTY, "the file has no bytes")
        if not settings.clips:
            return _decode(path, settings, on_frame)
        expected = _count_packets(path, on_frame)
        decoded = _decode(path, settings, on_frame, expected)
        if decoded.source_frames != expected:
            decoded = _decode(path, settings, on_frame, decoded.source_frames)
        return decoded
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


def _count_packets(path: Path, on_progress: Callable[[], None]) -> int:
    """Count the packets, i.e. the frames of an undamaged file. Call ``on_progress`` whenever reading moves forward."""
    count = farthest = 0
    with open_video(path) as container, contextlib.suppress(av.FFmpegError):  # the decoding pass records damage
        for packet in container.demux(video_stream(container)):
            count += packet.size > 0 and not packet.is_discard
            if packet.pos is not None and packet.pos > farthest:
                farthest = packet.pos
                on_progress()
    return count


def _decode(path: Path, settings: FrameSettings, on_frame: Callable[[], None], expected: int = 0) -> DecodedVideo:
    """Decode the video in one pass. ``expected`` is the number of frames, needed only to place windows."""
    selected, windows = _select_frames(expected, settings)
    stored_set = frozenset(selected) if settings.clips else None
    encoder = FrameEncoder(settings.short_side, settings.quality, settings.chroma)
    notes = DecodingNotes()
    jpegs: list[bytes] = []
    stored: list[int] = []
    times: list[float | None] = []
    size = 0
    flow = FlowRecorder(settings.flow) if settings.flow else None
    with open_video(path) as container:
        stream = video_stream(container)
        for frame in decode_frames(container, stream, notes):
            is_stored = len(times) % settings.stride == 0 if stored_set is None else len(times) in stored_set
            if (is_stored and not settings.raw) or flow or not times:  # the first frame sets the size
                planes = encoder.scale(frame)
            if is_stored:
                jpegs.append(encoder.pixels(frame) if settings.raw else encoder.encode(planes))
                stored.append(len(times))
                size += len(jpegs[-1])
            if flow:
                flow.add(planes[0].copy(), is_stored)  # scale() reuses the plane's memory
            times.append(frame.time)
            on_frame()
            if size > MAX_STORED_BYTES:
                limit = f"{MAX_STORED_BYTES / 2**30:g} GiB"
                raise UndecodableVideo(QuarantineReason.TOO_LONG, f"{len(times)} frames exceed {limit}: cut the video")
        if not times:
            errors = notes.errors
            detail = f"{len(errors)} packets do not decode: {errors[-1]}" if errors else "the file holds no frame"
            raise UndecodableVideo(QuarantineReason.NO_FRAMES, detail)
        seconds, fps = _frame_times(times, stream.average_rate, stream.guessed_rate)
    return DecodedVideo(
        jpegs=jpegs,
        times=[seconds[number] for number in stored],
        fps=fps,
        height=encoder.height,
        width=encoder.width,
        windows=windows,
        source_frames=len(times),
        damaged_packets=len(notes.errors),
        flows=flow.finish() if flow else [],
        matrices=notes.matrices,
    )


def _frame_times(
    times: list[float | None], average_rate: Fraction | None, guessed_rate: Fraction | None = None
) -> tuple[list[float], float]:
    """Return the seconds from the first frame to each frame, and the average frame rate.

    The container's timestamps are used if they increase in each microsecond's rounding and never by more than
    MAX_GAP_SECONDS. Otherwise (packed B-frames in AVI, raw streams without timestamps, a clock that jumps) frames are
    placed ``1 / rate`` apart. The default rate is 25, as in ffmpeg.
    """
    known = [time for time in times if time is not None]
    seconds = [round(time - known[0], 6) for time in known]
    gaps = [later - earlier for earlier, later in pairwise(seconds)]
    if len(known) == len(times) > 1 and all(0 < gap <= MAX_GAP_SECONDS for gap in gaps):
        return seconds, round((len(seconds) - 1) / (known[-1] - known[0]), 6)
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

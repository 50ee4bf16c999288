"""One video file -> JPEG frames, upright, ready for a shard.

What is decoded is what the ffmpeg program decodes of the same file: its choice of video stream, every frame that comes
out, damaged packets left out, edit lists and rotation applied. Sample aspect ratios are not (decord, torchcodec and the
published preparations of Kinetics do not either).
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_tools.flow import FlowRecorder
from data_tools.frames import FrameEncoder
from motionmae.errors import UserError

MAX_STORED_BYTES = 2**30
"""A video whose frames exceed this is refused: they are held in memory until the video is done."""


class Reason(str, Enum):
    """Why a video is in the quarantine."""

    MISSING = "missing"
    """The annotations name it and it is not there."""
    EMPTY = "empty"
    """The file has no bytes."""
    UNREADABLE = "unreadable"
    """The file system refused or failed."""
    NOT_A_VIDEO = "not_a_video"
    """No container format that could be opened: another kind of file, or one whose head is lost."""
    NO_VIDEO_STREAM = "no_video_stream"
    """Sound only, or nothing at all, or a cover picture."""
    NO_FRAMES = "no_frames"
    """There is a video stream but nothing of it decodes (damaged, encrypted, cut off before the first frame)."""
    UNKNOWN_CODEC = "unknown_codec"
    """No decoder for the video stream."""
    NO_FLOW = "no_flow"
    """Optical flow was asked for, and pictures of a few pixels have none."""
    TOO_LONG = "too_long"
    """Its frames would need more memory than a sample may have."""
    TIMEOUT = "timeout"
    """No frame came for longer than the time limit; the decoding process was killed."""
    CRASHED = "crashed"
    """The decoding process died, or failed in a way that is not the video's ordinary damage."""


class Undecodable(Exception):  # noqa: N818 - it names a thing found, not a failure of ours
    """A video goes to the quarantine.

    Attributes:
        reason: one of :class:`Reason`.
        detail: what happened, for a person.
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class FrameSettings:
    """Which frames of a video are stored, and how. All of it shapes the bytes of a shard."""

    short_side: int = 256
    """Pixels of the shorter side; smaller videos keep their size (the loader resizes its crops anyway)."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    stride: int = 1
    """Every how many frames one is stored."""
    clips: int = 0
    """How many windows of a video are stored, evenly spread; 0: the whole video."""
    window: int = 64
    """Source frames of a window (16 frames at stride 4)."""
    flow: int = 0
    """Source frames from one picture of a stored optical-flow field to the other; 0: no flow."""

    raw: bool = False
    """Store pixels in place of JPEGs: about 13 times the bytes."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("short_side", 16, 8192),
            ("quality", 1, 100),
            ("stride", 1, 1000),
            ("clips", 0, 1000),
            ("window", 1, 100_000),
            ("flow", 0, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {getattr(self, name)} is not possible: choose {low} to {high}")
        if self.window < self.stride:
            raise UserError(f"--window {self.window} is shorter than --stride {self.stride}: it would hold no frame")


@dataclass(frozen=True)
class Decoded:
    """The stored frames of a video."""

    jpegs: list[bytes]
    """Baseline JPEGs, 4:2:0, all of one even height and width; with ``raw`` their RGB pixels."""
    times: list[float]
    """Seconds of each stored frame since the first frame of the video; rising."""
    fps: float
    """Frames a second of the source, on average."""
    height: int
    """Stored pixels."""
    width: int
    """Stored pixels."""
    windows: list[int]
    """First stored frame of each stored window."""
    source_frames: int
    """Frames that decode, stored or not."""
    damaged_packets: int
    """Packets of the file that did not decode."""
    flows: list[bytes]
    """Optical flow of each stored frame (motionmae.data.flow), or none."""

    def pack(self) -> list[bytes]:
        """JSON head, then the JPEGs, then the flow fields: how a decoding process hands it over."""
        head = {name: value for name, value in vars(self).items() if name not in ("jpegs", "flows")}
        return [json.dumps(head | {"parts": len(self.jpegs) + len(self.flows)}).encode(), *self.jpegs, *self.flows]

    @classmethod
    def unpack(cls, receive: Callable[[], bytes]) -> "Decoded":
        """The inverse of :meth:`pack`, whose parts ``receive`` returns one by one."""
        head = json.loads(receive())
        parts = [receive() for _ in range(head.pop("parts"))]
        count = len(head["times"])
        return cls(jpegs=parts[:count], flows=parts[count:], **head)


def decode_video(path: Path, settings: FrameSettings, on_frame: Callable[[], None] = lambda: None) -> Decoded:
    """Decode a video and encode the frames to store, and no others.

    Where windows lie depends on how many frames decode. Packets are counted first, which is cheap; a damaged file gives
    other frames than it has packets, and is decoded once more.

    Args:
        path: the file.
        settings: which frames, which size, which quality.
        on_frame: called after each decoded frame, a sign of life.

    Raises:
        Undecodable: for a file without a single decodable frame.
    """
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise Undecodable(Reason.EMPTY, "the file has no bytes")
        if not settings.clips:
            return _decode(path, settings, on_frame)
        expected = _count_packets(path, on_frame)
        decoded = _decode(path, settings, on_frame, expected)
        if decoded.source_frames != expected:
            decoded = _decode(path, settings, on_frame, decoded.source_frames)
        return decoded
    except cv2.error as error:
        raise Undecodable(Reason.NO_FLOW, f"optical flow cannot be computed: {error.err}") from error
    except OSError as error:  # some of ffmpeg's errors are OSErrors too, e.g. a refused permission
        raise Undecodable(Reason.UNREADABLE, str(error)) from error
    except av.FFmpegError as error:
        raise Undecodable(Reason.NOT_A_VIDEO, f"it does not open: {error.strerror}") from error


def _open(path: Path) -> Any:
    # absolute: ffmpeg takes "a:b.mp4" for a protocol; replace: HMDB51 has titles that are no UTF-8
    return av.open(str(path.absolute()), metadata_errors="replace")


def _count_packets(path: Path, on_progress: Callable[[], None]) -> int:
    """Frames that an undamaged file gives; ``on_progress`` is called as long as the reading gets on in the file."""
    count = farthest = 0
    with _open(path) as container, contextlib.suppress(av.FFmpegError):  # damage is noted when it is decoded
        for packet in container.demux(_video_stream(container)):
            count += packet.size > 0 and not packet.is_discard
            if packet.pos is not None and packet.pos > farthest:
                farthest = packet.pos
                on_progress()
    return count


def _decode(path: Path, settings: FrameSettings, on_frame: Callable[[], None], expected: int = 0) -> Decoded:
    """One pass over a video; ``expected`` frames, where only windows of them are stored."""
    kept, windows = _windows(expected, settings)
    wanted = frozenset(kept) if settings.clips else None
    encoder = FrameEncoder(settings.short_side, settings.quality)
    damage = _Damage()
    jpegs: list[bytes] = []
    stored: list[int] = []
    times: list[float | None] = []
    size = 0
    flow = FlowRecorder(settings.flow) if settings.flow else None
    with _open(path) as container:
        stream = _video_stream(container)
        stream.codec_context.thread_count = 1  # a process a core; and damage must not depend on threads
        for frame in _frames(container, stream, damage):
            is_stored = len(times) % settings.stride == 0 if wanted is None else len(times) in wanted
            if (is_stored and not settings.raw) or flow or not times:  # the first decides the size
                planes = encoder.scale(frame)
            if is_stored:
                jpegs.append(encoder.pixels(frame) if settings.raw else encoder.encode(planes))
                stored.append(len(times))
                size += len(jpegs[-1])
            if flow:
                flow.add(planes[0].copy(), is_stored)  # the plane's memory is used again
            times.append(frame.time)
            on_frame()
            if size > MAX_STORED_BYTES:
                limit = f"{MAX_STORED_BYTES / 2**30:g} GiB"
                raise Undecodable(Reason.TOO_LONG, f"{len(times)} frames and more exceed {limit}: cut the video")
        if not times:
            raise Undecodable(Reason.NO_FRAMES, damage.described or "the file holds no frame")
        seconds, fps = _clock(times, stream.average_rate or stream.guessed_rate)
    return Decoded(
        jpegs=jpegs,
        times=[seconds[number] for number in stored],
        fps=fps,
        height=encoder.height,
        width=encoder.width,
        windows=windows,
        source_frames=len(times),
        damaged_packets=damage.packets,
        flows=flow.finish() if flow else [],
    )


def _video_stream(container: Any) -> VideoStream:
    """The stream ffmpeg itself would choose; the cover picture of a song is none."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        kinds = ", ".join(sorted(stream.type for stream in container.streams)) or "none"
        raise Undecodable(Reason.NO_VIDEO_STREAM, f"the streams of the file are: {kinds}")
    if stream.codec_context is None:
        raise Undecodable(Reason.UNKNOWN_CODEC, "there is no decoder for the video stream")
    return stream


class _Damage:
    """Packets that did not decode, and what was said of the last."""

    packets = 0
    described = ""

    def note(self, error: av.FFmpegError) -> None:
        self.packets += 1
        self.described = f"{self.packets} packets do not decode: {error.strerror}"


def _frames(container: Any, stream: VideoStream, damage: _Damage) -> Iterator[VideoFrame]:
    """All frames that decode. A packet that does not is left out, as the ffmpeg program does."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the container breaks off here
            damage.note(error)
            packet = None
        try:
            yield from stream.codec_context.decode(packet)  # None: what the decoder still holds
        except av.EOFError:  # it was flushed before
            return
        except av.FFmpegError as error:
            damage.note(error)
        if packet is None:
            return


def _clock(times: list[float | None], rate: Fraction | None) -> tuple[list[float], float]:
    """Seconds of each frame since the first, and frames a second on average.

    The container's times hold if they rise; packed B-frames in AVI step back, and raw streams have none: such frames
    are ``1 / rate`` apart. Without a rate either it is 25, as ffmpeg assumes.
    """
    known = [time for time in times if time is not None]
    if len(known) == len(times) > 1 and all(low < high for low, high in pairwise(known)):
        seconds = [round(time - known[0], 6) for time in known]
        return seconds, round((len(seconds) - 1) / (known[-1] - known[0]), 6)
    fps = float(rate) if rate else 25.0
    return [round(index / fps, 6) for index in range(len(times))], round(fps, 6)


def _windows(total: int, settings: FrameSettings) -> tuple[list[int], list[int]]:
    """Which of ``total`` source frames are stored, and the place of each window's first among them.

    A video that the windows of ``clips`` would cover anyway stays whole.
    """
    clips, window, stride = settings.clips, settings.window, settings.stride
    if clips == 0 or total <= clips * window:
        return list(range(0, total, stride)), [0]
    slack = total - window
    firsts = [slack // 2] if clips == 1 else [index * slack // (clips - 1) for index in range(clips)]
    kept: list[int] = []
    windows = []
    for first in firsts:
        windows.append(len(kept))
        start = -(-first // stride)
        kept.extend(range(start * stride, (start + window // stride) * stride, stride))
    return kept, windows

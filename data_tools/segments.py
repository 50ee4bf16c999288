"""Cut the stored frames of a video into segments, and give them on in chunks while the video is decoded.

A segment ends when it lasts ``seconds``, and sooner if its next frame would exceed the size limit of a sample. Only its
own frames decide, because the header of a file may lie about its length. If the last segment has fewer than 64 source
frames (a clip of 16 frames at stride 4) and lasts less than half of ``seconds``, its frames join the segment before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_CHUNK_BYTES = 4 << 20
_SHORTEST = 64  # source frames
_HELD_BYTES = 16 << 20  # limit on the frames that wait for the decision whether their segment is long enough
_RATES = (0.01, 1000.0)  # frames per second that a header may claim
MAX_GAP_SECONDS = 3600.0
"""Longest possible time between two frames. The clock of a camera has jumped if its timestamps differ by more."""


class StoredFrame(NamedTuple):
    """Encoded frame of a video, with its optical flow if flow is stored."""

    number: int  # source frames before this one
    time: float  # seconds from the first frame of the video, strictly increasing
    damaged: int  # damaged packets before this frame
    content: bytes
    flow: bytes = b""

    @property
    def size(self) -> int:
        return len(self.content) + len(self.flow)


@dataclass(frozen=True)
class Segment:
    """End of a segment, whose frames were given on in chunks."""

    number: int  # from 0
    times: list[float]  # seconds from the first frame of the video to each stored frame
    fps: float  # average rate of the source
    source_frames: int
    damaged_packets: int
    is_last: bool


Part = list[StoredFrame] | Segment
"""Chunk of frames of the current segment, or its end."""


class Clock:
    """Times of the frames of a video, which increase strictly whatever the container says.

    A frame without a time, with one that does not increase, or after a jump of more than MAX_GAP_SECONDS, is placed
    ``1 / rate`` after the frame before it. ``rates`` are those of the header; the first possible one is used.
    """

    def __init__(self, *rates: Fraction | None):
        self.step = float(
            1 / next((rate for rate in rates if rate and _RATES[0] <= rate <= _RATES[1]), 25)
        )  # as ffmpeg
        self._now: float | None = None
        self._start: float | None = None  # time of the container at our time 0

    def time(self, container_time: float | None) -> float:
        """Return the seconds from the first frame to the next frame."""
        estimate = 0.0 if self._now is None else round(self._now + self.step, 6)
        if container_time is None:
            self._now = estimate
            return estimate
        known = estimate if self._start is None else round(container_time - self._start, 6)
        if self._start is None or known - estimate > MAX_GAP_SECONDS:
            known, self._start = estimate, container_time - estimate
        self._now = known if self._now is None or known > self._now else estimate
        return self._now


class Segmenter:
    """Cutter of one video. With infinite ``seconds`` and ``most_bytes``, the whole video is one segment."""

    def __init__(self, seconds: float, most_bytes: float, step: float):
        self._seconds, self._most_bytes, self._step = seconds, most_bytes, step
        self._first: StoredFrame | None = None  # of the current segment, without its content
        self._last: StoredFrame | None = None
        self._number = 0
        self._size = 0  # bytes of the current segment
        self._times: list[float] = []
        self._chunk: list[StoredFrame] = []  # frames of the current segment that are not given on yet
        self._chunk_bytes = 0
        self._held: list[StoredFrame] = []  # the next segment, while it may be too short to stand alone

    def add(self, frame: StoredFrame) -> Iterator[Part]:
        """Add the next stored frame of the video."""
        if self._held and frame.time - self._held[0].time >= self._seconds / 2:
            yield from self._begin_next()
        if self._held:
            self._held.append(frame)
            if frame.number - self._held[0].number >= _SHORTEST or sum(one.size for one in self._held) > _HELD_BYTES:
                yield from self._begin_next()
        elif self._first and self._size + frame.size > self._most_bytes:
            self._held = [frame]
            yield from self._begin_next()
        elif self._first and frame.time - self._first.time >= self._seconds - 1e-6:
            self._held = [frame]
        else:
            yield from self._append(frame)

    def finish(self, source_frames: int, damaged_packets: int) -> Iterator[Part]:
        """End the last segment. The arguments count those of the whole video."""
        if self._held and self._size + sum(one.size for one in self._held) > self._most_bytes:
            yield from self._begin_next()
        for frame in self._held:
            yield from self._append(frame)
        yield from self._end(source_frames, damaged_packets, is_last=True)

    def _begin_next(self) -> Iterator[Part]:
        """End the current segment, and make the held frames the beginning of the next one."""
        held, self._held = self._held, []
        yield from self._end(held[0].number, held[0].damaged, is_last=False)
        self._first, self._size, self._times = None, 0, []
        for frame in held:
            yield from self._append(frame)

    def _append(self, frame: StoredFrame) -> Iterator[Part]:
        self._last = frame._replace(content=b"", flow=b"")
        self._first = self._first or self._last
        self._times.append(frame.time)
        self._size += frame.size
        self._chunk.append(frame)
        self._chunk_bytes += frame.size
        if self._chunk_bytes >= _CHUNK_BYTES:
            yield self._take_chunk()

    def _take_chunk(self) -> list[StoredFrame]:
        chunk, self._chunk, self._chunk_bytes = self._chunk, [], 0
        return chunk

    def _end(self, source_frames: int, damaged_packets: int, is_last: bool) -> Iterator[Part]:
        yield self._take_chunk()
        first, last = self._first, self._last
        frames = last.number - first.number if first and last else 0
        seconds = last.time - first.time if first and last else 0
        fps = round(frames / seconds if frames else 1 / self._step, 6)
        if first and self._number:
            source_frames, damaged_packets = source_frames - first.number, damaged_packets - first.damaged
        yield Segment(self._number, self._times, fps, source_frames, damaged_packets, is_last)
        self._number += 1

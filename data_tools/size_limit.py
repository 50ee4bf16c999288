"""Find early that the stored frames of a video will exceed the size limit of a sample."""

from collections.abc import Callable
from typing import Any

_CHECK_EVERY = 64  # stored frames
_REMEDY = "use --segment-seconds or --clips, or a larger --stride or smaller --short-side (docs/data/long_videos.md)"


class SizeLimit:
    """Check of one video.

    The number of frames to come is taken from the header. A header that says too much is not believed: the packets are
    counted before the video is refused. If the header says nothing, they are counted at a sixteenth of the limit.
    Frames to come are assumed to have half the average size of the frames so far. Raw frames have one size, but a tenth
    of the packets may hold no frame (VP8 has such packets).
    """

    def __init__(self, most_bytes: int, expected: int, count: Callable[[], int] | None, is_raw: bool = False):
        """``expected`` frames are to be stored, or 0 if unknown. ``count`` returns their true number."""
        self._most_bytes, self._expected, self._count = most_bytes, expected, count
        self._is_raw = is_raw

    def find_excess(self, size: int, stored: int) -> str:
        """Return why a video with ``stored`` frames of ``size`` bytes so far exceeds the limit; "" if it may not."""
        if size > self._most_bytes:
            return f"its first {stored} stored frames exceed the {self._limit} of a sample: {_REMEDY}"
        is_unknown = not self._expected and size > self._most_bytes / 16
        if stored % _CHECK_EVERY or not (is_unknown or self._exceeds(size, stored)):
            return ""
        if self._count:
            self._expected, self._count = self._count(), None
        if not self._exceeds(size, stored):
            return ""
        total = f"{self._expected * size / stored / 2**30:.3g} GiB"
        return (
            f"its {self._expected} frames would take about {total}, more than the {self._limit} of a sample: {_REMEDY}"
        )

    @property
    def _limit(self) -> str:
        return f"{self._most_bytes / 2**30:g} GiB"

    def _exceeds(self, size: int, stored: int) -> bool:
        expected, share = (0.9 * self._expected, 1.0) if self._is_raw else (self._expected, 0.5)
        return size + max(0, expected - stored) * share * size / stored > self._most_bytes


def frames_of_header(container: Any, stream: Any) -> int:
    """Return the number of frames that the header of a file claims; 0 if it claims none."""
    if stream.frames:
        return int(stream.frames)
    rate = stream.average_rate
    if not rate:
        return 0
    if stream.duration and stream.time_base:
        return max(0, int(stream.duration * stream.time_base * rate))
    return max(0, int(container.duration * rate) // 1_000_000) if container.duration else 0

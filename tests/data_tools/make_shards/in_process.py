"""Decode videos in the process of the test, which is faster than to start processes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from data_tools.decode import DecodedVideo, FrameChunk, FrameSettings, decode_in_chunks


def decode_segments(
    path: Path, settings: FrameSettings, on_frame: Callable[[], None] = lambda: None
) -> Iterator[DecodedVideo]:
    """Yield the samples of a video with their frames as lists."""
    chunks: list[FrameChunk] = []
    for message in decode_in_chunks(path, settings, on_frame):
        if isinstance(message, FrameChunk):
            chunks.append(message)
            continue
        if isinstance(message, DecodedVideo):
            jpegs, flows = ([one for frames in part for one in frames] for part in zip(*chunks, strict=True))
            yield replace(message, jpegs=jpegs, flows=flows)
        chunks = []


def decode_video(path: Path, settings: FrameSettings, on_frame: Callable[[], None] = lambda: None) -> DecodedVideo:
    """Decode a video that is one sample."""
    (decoded,) = decode_segments(path, settings, on_frame)
    return decoded


class InProcessDecoder:
    """Stand-in for DecodeWorker."""

    def __init__(self, settings: FrameSettings, stall_timeout: float, spool: Path | None = None):
        self._settings = settings

    def decode(self, path: Path) -> Iterator[DecodedVideo]:
        return decode_segments(path, self._settings)

    def stop(self) -> None:
        pass

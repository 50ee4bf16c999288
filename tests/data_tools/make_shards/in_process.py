"""Decode videos in the process of the test, which is faster than to start processes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_tools.decode import DecodedVideo, FrameChunk, FrameSettings, decode_in_chunks


class InProcessDecoder:
    """Stand-in for DecodeWorker."""

    def __init__(self, settings: FrameSettings, stall_timeout: float, spool: Path | None = None):
        self._settings = settings

    def decode(self, path: Path) -> Iterator[DecodedVideo]:
        chunks: list[FrameChunk] = []
        for message in decode_in_chunks(path, self._settings):
            if isinstance(message, FrameChunk):
                chunks.append(message)
                continue
            if isinstance(message, DecodedVideo):
                jpegs, flows = ([one for frames in part for one in frames] for part in zip(*chunks, strict=True))
                yield replace(message, jpegs=jpegs, flows=flows)
            chunks = []

    def stop(self) -> None:
        pass

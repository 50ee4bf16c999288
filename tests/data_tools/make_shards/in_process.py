"""Decode videos in the process of the test, which is faster than to start processes."""

from pathlib import Path

from data_tools.decode import DecodedVideo, FrameSettings, decode_video


class InProcessDecoder:
    """Stand-in for DecodeWorker."""

    def __init__(self, settings: FrameSettings, stall_timeout: float):
        self._settings = settings

    def decode(self, path: Path) -> DecodedVideo:
        return decode_video(path, self._settings)

    def stop(self) -> None:
        pass

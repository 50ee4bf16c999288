"""Encode frames as video files in the formats of the public data sets, reproducibly to the byte."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
from av.video.stream import VideoStream

from data_tools.make_toy_dataset.render import Picture


class Format(NamedTuple):
    """Container with its usual codec."""

    suffix: str
    codec: str  # name of ffmpeg's encoder
    options: dict[str, str]
    """Fast encoder options. One thread makes the bytes independent of the number of cores. x264's macroblock tree is
    off, because its SIMD code reads uninitialised memory for small frames, and the bytes would differ between runs."""


FORMATS = (
    Format(".mp4", "libx264", {"preset": "veryfast", "crf": "20", "mbtree": "0", "threads": "1"}),
    Format(".webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0", "threads": "1"}),
    Format(".avi", "mpeg4", {"b": "2M", "threads": "1"}),
)
"""Formats of K400 (and most of the web), of Something-Something V2, and of UCF101 and HMDB51."""


def write_video(path: Path, pictures: Iterable[Picture], rate: Fraction, form: Format) -> None:
    """Encode RGB frames, uint8 (height, width, 3), all of one size with even sides, at ``rate`` frames per second."""
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = cast(VideoStream, container.add_stream(form.codec, rate=rate, options=form.options))
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

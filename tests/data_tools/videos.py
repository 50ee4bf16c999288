"""Small encoded videos for tests. A bright square crosses a gradient, and every frame and side is known."""

import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import simplejpeg

Frames = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]


def draw_frames(count: int = 24, width: int = 64, height: int = 48) -> Frames:
    """(count, height, width, 3) RGB: the top left is reddish, and a white square moves to the right."""
    y, x = np.mgrid[0:height, 0:width]
    background = np.stack([200 - 160 * x // width, 40 + 120 * y // height, 60 + 0 * x], axis=-1)
    frames = np.repeat(background[None].astype(np.uint8), count, axis=0)
    side = height // 4
    for index, frame in enumerate(frames):
        left = index * (width - side) // max(1, count - 1)
        frame[height // 2 : height // 2 + side, left : left + side] = 240
    return frames


def write_video(
    path: Path,
    frames: Frames,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    colorspace: int | None = None,
    full_range: bool = False,
) -> Path:
    """Encode frames; ``times`` (in frame durations) gives a variable rate. The ending sets the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        stream.bit_rate = 2_000_000
        stream.codec_context.color_range = 2 if full_range else 1
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=colorspace, dst_color_range=2 if full_range else 1
            )
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, seconds: float = 0.5) -> Path:
    """Write a file with a sine tone only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac" if path.suffix != ".wav" else "pcm_s16le", rate=16000, layout="mono")
        samples = np.sin(np.arange(int(16000 * seconds)) / 10)[None].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 16000, frame_size=1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Set the display matrix (a b / c d) of an mp4 track: x' = a x + c y, y' = b x + d y."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    content[at : at + 20] = struct.pack(">5i", a * one, b * one, 0, c * one, d * one)
    path.write_bytes(content)
    return path


def decode_jpegs(jpegs: list[bytes]) -> Frames:
    """RGB frames of stored JPEGs."""
    return np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit pictures, or the minimum over two stacks."""
    errors = ((one.astype(float) - other) ** 2).mean(axis=(-3, -2, -1))
    return float(10 * np.log10(255**2 / max(errors.max(), 1e-9)))


_FFMPEG = ("ffmpeg", "-v", "quiet", "-nostdin", "-threads", "1")  # more threads replace damaged parts differently


def ffmpeg_count(path: Path) -> int:
    """Number of frames that the ffmpeg program decodes."""
    command = [*_FFMPEG, "-i", f"file:{path}", "-vsync", "0", "-an", "-f", "null"]
    result = subprocess.run([*command, "-progress", "pipe:1", "/dev/null"], capture_output=True, text=True, check=False)
    counts = [line for line in result.stdout.splitlines() if line.startswith("frame=")]
    return int(counts[-1].removeprefix("frame=")) if counts else 0


def ffmpeg_frames(path: Path, width: int, height: int, choice: str = "null", rotate: bool = True) -> Frames:
    """RGB frames, decoded, rotated and scaled by the ffmpeg program; ``choice`` is a filter that selects frames."""
    command = [*_FFMPEG, *([] if rotate else ["-noautorotate"]), "-i", f"file:{path}", "-vsync", "0", "-an"]
    command += ["-vf", f"{choice},scale={width}:{height}:flags=bicubic", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    result = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3)

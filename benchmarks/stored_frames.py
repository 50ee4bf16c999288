"""Size and fidelity of stored frames, and the time to load them, by short side, quality and chroma.

Examples:
  python -m benchmarks.stored_frames                        # real footage that `pip install 'motionmae[bench]'` brings
  python -m benchmarks.stored_frames --videos KINETICS --json stored_frames.json

For some frames of each video the program compares a training crop of 224 x 224, as the loader cuts it from the stored
frame, with the same crop of the decoded video. Where the crop has more than twice the size, its pixels are averaged,
as the loader does.

  kB        bytes of a stored frame / 1000
  PSNR      of the crop in RGB, dB, from the mean squared error over all frames
  SSIM      of its brightness (Wang et al. 2004), mean
  clips/s   clips of 16 x 224 x 224 that one core decodes, crops and resizes from JPEGs in memory (the best of three)
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from benchmarks.script import add_videos_option, build_parser, find_videos, run_script, write_json
from data_tools.decode import FrameSettings
from data_tools.frames import FrameEncoder
from data_tools.make_shards.presets import PRESETS
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_sampling import Crop, random_crop
from motionmae.data.jpeg import Target, decode_clips
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.reader import SampleMeta
from motionmae.data.video.open_video import open_video
from motionmae.files import output_file

CLIP = ClipConfig()
EVERY = 20
"""One of this many frames is measured."""


class Stored(NamedTuple):
    """Stored frame and its crop."""

    jpeg: bytes
    meta: SampleMeta
    crop: Crop

    def clip(self, frames: int) -> np.ndarray:
        """Return the crop as the loader makes it, ``frames`` times: uint8 (frames, size, size, 3)."""
        out = np.empty((frames, CLIP.size, CLIP.size, 3), np.uint8)
        decode_clips(dict.fromkeys(range(frames), self.jpeg), self.meta, [Target(range(frames), self.crop, out)])
        return out


def sample_frames(videos: Iterable[Path], frames: int) -> Iterator[VideoFrame]:
    """Yield up to ``frames`` frames of each video."""
    for path in videos:
        with open_video(path) as container:
            yield from itertools.islice(container.decode(video=0), 0, EVERY * frames, EVERY)


def store(frame: VideoFrame, number: int, settings: FrameSettings) -> Stored:
    """Encode a frame as make_shards does, and draw a crop of pre-training."""
    encoder = FrameEncoder(settings.short_side, settings.quality, settings.chroma)
    jpeg = encoder.encode(encoder.scale(frame))
    meta = SampleMeta("", "", 0, 1.0, 1, 1, encoder.height, encoder.width, (0,), has_flow=False)
    crop = random_crop(meta.height, meta.width, CLIP.size, DataConfig(flip=False), KeyedRandom("stored", number))
    return Stored(jpeg, meta, crop)


def original_crop(pixels: np.ndarray, stored: Stored) -> np.ndarray:
    """Cut the crop of a stored frame from the decoded frame (height, width, 3), at exact positions."""
    crop, size = stored.crop, CLIP.size
    across, down = pixels.shape[1] / stored.meta.width, pixels.shape[0] / stored.meta.height
    left, top, width, height = crop.left * across, crop.top * down, crop.width * across, crop.height * down
    if min(width, height) > 2 * size:
        box = (left, top, min(left + width, pixels.shape[1]), min(top + height, pixels.shape[0]))
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX, box=box))
    scale = (width / size, height / size)
    matrix = np.array([[scale[0], 0, left + (scale[0] - 1) / 2], [0, scale[1], top + (scale[1] - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Return the SSIM of the brightness of two pictures, with a Gaussian window of 11 pixels."""

    def blur(picture: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(picture, (11, 11), 1.5)[5:-5, 5:-5]

    x, y = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float64) for one in (first, second))
    mean_x, mean_y = blur(x), blur(y)
    covariance = blur(x * y) - mean_x * mean_y
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(means * (2 * covariance + c2) / (variances + c2)))


def measure(frames: list[VideoFrame], pixels: list[np.ndarray], settings: FrameSettings) -> dict[str, float]:
    """Return the figures of one row of the table."""
    stored = [store(frame, number, settings) for number, frame in enumerate(frames)]
    errors, similarities = [], []
    for original, one in zip(pixels, stored, strict=True):
        want, (found,) = original_crop(original, one), one.clip(1)
        errors.append(np.mean((want.astype(np.float64) - found) ** 2))
        similarities.append(similarity(want, found))
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        for one in stored:
            one.clip(1)
        rates.append(len(stored) / (time.perf_counter() - started) / CLIP.frames)
    return {
        "kilobytes": round(float(np.mean([len(one.jpeg) for one in stored])) / 1e3, 1),
        "psnr": round(float(10 * np.log10(255**2 / np.mean(errors))), 2),
        "ssim": round(float(np.mean(similarities)), 4),
        "clips_per_second": round(max(rates)),
    }


def main() -> None:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_videos_option(parser)
    add("--frames", type=int, default=6, help="frames of each video, 20 apart (%(default)s)")
    add("--short-sides", type=int, nargs="+", default=[192, 224, 256, 320], help="pixels (%(default)s)")
    add("--qualities", type=int, nargs="+", default=[50, 60, 70, 80, 90, 95], help="JPEG qualities (%(default)s)")
    add("--chroma", nargs="+", default=["420", "444"], help="chroma subsamplings (%(default)s)")
    add("--presets", action="store_true", help="measure only the presets of make_shards")
    add("--json", type=output_file, help="also write the figures as JSON")
    options = parser.parse_args()
    videos = find_videos(parser, options.videos)
    frames = list(sample_frames(videos, options.frames))
    if not frames:
        parser.error("the videos give no frames: give other --videos, or a positive --frames")
    cv2.setNumThreads(0)
    pixels = [frame.to_ndarray(format="rgb24") for frame in frames]
    choices: list[Any] = list(itertools.product(options.short_sides, options.qualities, options.chroma))
    if options.presets:
        choices = [(one.short_side, one.quality, one.chroma) for one in PRESETS.values()]
    rows = []
    print(f"{len(frames)} frames of {len(videos)} videos\nshort side  quality  chroma     kB   PSNR    SSIM  clips/s")
    for side, quality, chroma in choices:
        row = measure(frames, pixels, FrameSettings(short_side=side, quality=quality, chroma=chroma))
        rows.append({"short_side": side, "quality": quality, "chroma": chroma, **row})
        print("{:10} {:8} {:>7} {:6} {:6} {:7} {:8}".format(*rows[-1].values()), flush=True)
    write_json(options.json, {"frames": len(frames), "videos": len(videos), "rows": rows})


if __name__ == "__main__":
    run_script(main)

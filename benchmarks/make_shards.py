"""Frames per second that one core decodes into shards, compared with the ffmpeg program.

Examples:
  python -m benchmarks.make_shards                          # real footage that `pip install 'motionmae[bench]'` brings
  python -m benchmarks.make_shards --videos KINETICS --json make_shards.json

All rows run on the same core, in turns. A rate is the median over the rounds and includes the start of the process.

  ours             make_shards: decodes, scales, encodes JPEGs of quality 90, writes shards with checksums to the disk
  ffmpeg           the ffmpeg program: decodes, scales to the same size, encodes MJPEG, writes nothing
  ffmpeg_huffman   the same with its faster, fixed Huffman tables (make_shards uses fixed tables too)
  ffmpeg_decode    the ffmpeg program decodes only: the upper limit of any writer
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.script import build_parser, run_script, write_json
from data_tools.make_toy_dataset.cli import find_real_videos
from motionmae.commands.app import main as motionmae
from motionmae.data.video import VIDEO_SUFFIXES
from motionmae.files import output_file

SHORT_SIDE, QUALITY = 256, 90
FFMPEG_QUALITY = 2
"""ffmpeg's scale is 1 to 31; 2 gives files of about the size of JPEG quality 90."""
Figures = tuple[float, float]
"""(frames per second, kilobytes per frame)."""


def ours(videos: list[Path]) -> Figures:
    """Run make_shards with one decoding process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        for number, video in enumerate(videos):
            (folder / "videos" / f"{number:04d}{video.suffix}").symlink_to(video.resolve())
        command = ["folder", "--videos", str(folder / "videos"), "--out", str(folder / "out"), "--workers", "1"]
        command += ["--short-side", str(SHORT_SIDE), "--quality", str(QUALITY), "--json", str(folder / "figures.json")]
        started = time.perf_counter()
        status = motionmae(["shards", "make", *command])
        seconds = time.perf_counter() - started
        assert status == 0, f"make_shards ended with status {status}"
        found = json.loads((folder / "figures.json").read_text())
    return found["frames"] / seconds, found["bytes"] / found["frames"] / 1e3


def ffmpeg(videos: list[Path], *options: str, encode: bool = True) -> Figures:
    """Run the ffmpeg program, one process per video."""
    scale = f"scale='if(gt(iw,ih),-2,min(iw,{SHORT_SIDE}))':'if(gt(iw,ih),min(ih,{SHORT_SIDE}),-2)'"
    encoder = ["-vf", f"{scale}:out_range=pc,format=yuvj420p", "-c:v", "mjpeg", "-q:v", str(FFMPEG_QUALITY), *options]
    output = [*encoder, "-f", "mjpeg"] if encode else ["-f", "null"]
    started, frames, size = time.perf_counter(), 0, 0
    for video in videos:
        command = ["ffmpeg", "-nostdin", "-hide_banner", "-threads", "1", "-i", str(video), "-an", "-threads", "1"]
        command += ["-filter_threads", "1", "-fps_mode", "passthrough", *output, "-y", "/dev/null"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        frames += int(log.rpartition("frame=")[2].split()[0])
        size += int(log.rpartition("video:")[2].partition("kB")[0]) if encode else 0
    return frames / (time.perf_counter() - started), size * 1.024 / frames


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--videos", type=Path, help="folder of videos (default: real footage of installed packages)")
    parser.add_argument("--copies", type=int, default=6, help="copies of each video (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (%(default)s)")
    parser.add_argument("--json", type=output_file, help="also write the figures as JSON")
    options = parser.parse_args()
    found = options.videos.rglob("*") if options.videos else find_real_videos()
    videos = sorted(path for path in found if path.suffix.lower() in VIDEO_SUFFIXES) * options.copies
    if not videos:
        parser.error("no videos: give --videos FOLDER, or install a few with pip install 'motionmae[demo]'")
    if shutil.which("ffmpeg") is None:
        parser.error("the ffmpeg program is not installed: apt-get install ffmpeg")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    ways: dict[str, Callable[[], Figures]] = {
        "ours": partial(ours, videos),
        "ffmpeg": partial(ffmpeg, videos),
        "ffmpeg_huffman": partial(ffmpeg, videos, "-huffman", "default"),
        "ffmpeg_decode": partial(ffmpeg, videos, encode=False),
    }
    rounds: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            rounds[name].append(way())
            print(f"{name:15} {rounds[name][-1][0]:7.1f} frames/s", file=sys.stderr)
    rates = {name: round(median(rate for rate, _ in values), 1) for name, values in rounds.items()}
    sizes = {name: round(values[0][1], 2) for name, values in rounds.items()}
    print(f"{len(videos)} videos, one core  frames/s  of ffmpeg  kB a frame")
    for name, rate in rates.items():
        print(f"{name:19} {rate:10.1f} {rate / rates['ffmpeg']:10.2f} {sizes[name] or '':>11}")
    write_json(options.json, {"frames_per_second": rates, "kilobytes_per_frame": sizes, "videos": len(videos)})


if __name__ == "__main__":
    run_script(main)

"""Frames per second that one core decodes into shards, compared with the ffmpeg program.

Examples:
  python -m benchmarks.make_shards                          # real footage that `pip install 'motionmae[bench]'` brings
  python -m benchmarks.make_shards --videos KINETICS --json make_shards.json

All rows run on the same core, in turns. A rate is the median over the rounds and includes the start of the process;
`CPU` is frames per second of CPU time, which other load changes less. Each row of make_shards is compared with the row
of ffmpeg below it.

  standard         make_shards: decodes, scales, encodes JPEGs of quality 90, writes shards with checksums to the disk
  ffmpeg           the ffmpeg program: decodes, scales to the same size, encodes MJPEG, writes nothing
  small            make_shards --preset small
  ffmpeg_small     the ffmpeg program with MJPEG of about this size
  archive          make_shards --preset archive
  ffmpeg_archive   the ffmpeg program with MJPEG of its best quality and with half chroma
  ffmpeg_huffman   `ffmpeg` with its faster, fixed Huffman tables (make_shards uses fixed tables too)
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
from typing import NamedTuple

from benchmarks.script import add_videos_option, build_parser, find_videos, run_script, write_json
from data_tools.make_shards.presets import PRESETS
from motionmae.commands.app import main as motionmae
from motionmae.files import output_file

FFMPEG_QUALITY = {"small": 6, "standard": 2, "archive": 1}
"""ffmpeg's scale is 1 to 31; 2 gives files of about the size of JPEG quality 90, and 6 of quality 50."""


class Figures(NamedTuple):
    """One run."""

    frames: int
    seconds: float
    cpu_seconds: float
    kilobytes: float  # per frame


def ours(videos: list[Path], preset: str) -> Figures:
    """Run make_shards with one decoding process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        for number, video in enumerate(videos):
            (folder / "videos" / f"{number:04d}{video.suffix}").symlink_to(video.resolve())
        command = ["folder", "--videos", str(folder / "videos"), "--out", str(folder / "out"), "--workers", "1"]
        command += ["--preset", preset, "--json", str(folder / "figures.json")]
        started = _clocks()
        status = motionmae(["shards", "make", *command])
        seconds, cpu = _since(started)
        assert status == 0, f"make_shards ended with status {status}"
        found = json.loads((folder / "figures.json").read_text())
    return Figures(found["frames"], seconds, cpu, found["bytes"] / found["frames"] / 1e3)


def ffmpeg(videos: list[Path], preset: str, *options: str, encode: bool = True) -> Figures:
    """Run the ffmpeg program, one process per video."""
    side = PRESETS[preset].short_side
    scale = f"scale='if(gt(iw,ih),-2,min(iw,{side}))':'if(gt(iw,ih),min(ih,{side}),-2)'"
    encoder = ["-vf", f"{scale}:out_range=pc,format=yuvj420p", "-c:v", "mjpeg"]
    encoder += ["-qmin", "1", "-q:v", str(FFMPEG_QUALITY[preset])]
    output = [*encoder, *options, "-f", "mjpeg"] if encode else ["-f", "null"]
    started, frames, size = _clocks(), 0, 0
    for video in videos:
        command = ["ffmpeg", "-nostdin", "-hide_banner", "-threads", "1", "-i", str(video), "-an", "-threads", "1"]
        command += ["-filter_threads", "1", "-fps_mode", "passthrough", *output, "-y", "/dev/null"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        frames += int(log.rpartition("frame=")[2].split()[0])
        size += int(log.rpartition("video:")[2].partition("kB")[0]) if encode else 0
    return Figures(frames, *_since(started), size * 1.024 / frames)


def _clocks() -> tuple[float, float]:
    """Return the time, and the CPU time of this process and of its children that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


def _since(started: tuple[float, float]) -> tuple[float, float]:
    seconds, cpu = (now - then for now, then in zip(_clocks(), started, strict=True))
    return seconds, cpu


def _rate(runs: list[Figures], unit: str = "seconds") -> float:
    """Return the median of frames per second."""
    return round(median(run.frames / getattr(run, unit) for run in runs), 1)


def _peer(row: str) -> str:
    """Return the row of ffmpeg with which a row is compared."""
    return f"ffmpeg_{row}" if row in ("small", "archive") else "ffmpeg"


def main() -> None:
    parser = build_parser(__doc__)
    add_videos_option(parser)
    parser.add_argument("--copies", type=int, default=6, help="copies of each video (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="measure only these rows")
    parser.add_argument("--json", type=output_file, help="also write the figures as JSON")
    options = parser.parse_args()
    videos = find_videos(parser, options.videos) * options.copies
    if shutil.which("ffmpeg") is None:
        parser.error("the ffmpeg program is not installed: apt-get install ffmpeg")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    ways: dict[str, Callable[[], Figures]] = {}
    for preset in ("standard", "small", "archive"):
        ways[preset] = partial(ours, videos, preset)
        ways[_peer(preset)] = partial(ffmpeg, videos, preset)
    ways["ffmpeg_huffman"] = partial(ffmpeg, videos, "standard", "-huffman", "default")
    ways["ffmpeg_decode"] = partial(ffmpeg, videos, "standard", encode=False)
    names = [name for name in ways if name in (options.only or ways)]
    rounds: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            rounds[name].append(ways[name]())
            print(f"{name:15} {_rate(rounds[name][-1:]):7.1f} frames/s", file=sys.stderr)
    figures = {
        name: {"frames_per_second": _rate(runs), "frames_per_cpu_second": _rate(runs, "cpu_seconds")}
        for name, runs in rounds.items()
    }
    print(f"{len(videos)} videos, one core  frames/s  of ffmpeg  per CPU s  of ffmpeg  kB a frame")
    for name, row in figures.items():
        peer = figures.get(_peer(name))
        columns = [f"{value:10.1f} {f'{value / peer[unit]:.2f}' if peer else '':>10}" for unit, value in row.items()]
        row["kilobytes_per_frame"] = round(rounds[name][0].kilobytes, 2)
        print(f"{name:19} {' '.join(columns)} {row['kilobytes_per_frame'] or '':>11}")
    write_json(options.json, {"rows": figures, "videos": len(videos)})


if __name__ == "__main__":
    run_script(main)

"""Clips per second of MotionMAE's loader, of other loaders, and of decoding alone, on the same videos and cores.

Examples:
  python -m benchmarks.loader --cores 1                     # real footage that `pip install 'motionmae[bench]'` brings
  python -m benchmarks.loader --videos KINETICS --cores 2 --json loader.json
  python -m benchmarks.loader --videos KINETICS --only floor ours ffcv --cold

Every loader returns batches of clips of 16 x 224 x 224, with one frame of 4 and a random crop, ready for the device.
The loaders take turns. A rate is the median over the rounds; a ratio is the median of the ratios within a round.

  floor         only decoding (down to the last row of the crop), crop and resize of JPEGs in memory, for the first
                clips of `ours`: no reads and no checks
  ours          ClipLoader on shards of the videos from make_shards (short side 256, quality 90)
  floor_small, small, floor_archive, archive
                the same with shards of make_shards --preset small and archive
  finetune      `ours` with the crops of fine-tuning (8 to 100 % of the frame), two clips from each video
  finetune_shared  the same with data.share_frames
  ours_threads  the same with threads of this process (`ours` uses threads on one core and processes on more)
  ours_raw      `ours` on shards of pixels (make_shards --raw)
  ffcv          `ours` on a .beton of these shards (benchmarks/beton.py compares more)
  ffcv_raw      FFCV's own loader on stored pixels (2.4 MB per clip): fixed frames and crops, not for pre-training
  webdataset    webdataset's own pipeline on the same shards
  decord        VideoMAE's loader: decord, PIL, float32; this row and the next two read the videos
  torchcodec    torchcodec and torch's resize
  pyav          PyAV and OpenCV's resize
"""

import contextlib
import os
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

# Under TBB, numba's first choice, FFCV's loader keeps a process with one CPU from ending (numba issue 10556).
os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp workqueue tbb")

import cv2
import numpy as np
import simplejpeg

from benchmarks.peers import loading as loader_peers
from benchmarks.script import add_videos_option, build_parser, find_videos, make_shards, run_script, write_json
from data_tools.make_beton import write_beton
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest
from motionmae.data.clip_sampling import Crop
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.files import output_file

CLIP = ClipConfig()
OURS = ("ours", "small", "archive", "finetune", "finetune_shared", "ours_raw", "ffcv")
"""Rows of ClipLoader that use processes on more than one core."""
NAMES = (
    *("floor", "ours", "floor_small", "small", "floor_archive", "archive", "finetune", "finetune_shared"),
    *("ours_threads", "ours_raw", "ffcv", "ffcv_raw", "webdataset", "decord", "torchcodec", "pyav"),
)

Turn = contextlib.AbstractContextManager[Iterator[int]]
"""Context manager that opens a loader. It yields an endless iterator over the number of clips in each batch."""


class Bench:
    """Loaders to measure. Each public method opens one, as a :data:`Turn`.

    Args:
        folder: shards of the videos; other formats are written beside it.
        cores: number of threads or worker processes.
        batch: clips per batch.
        cold: whether a turn includes its first batch. Threads then decode, because processes would add their start.
    """

    def __init__(self, videos: list[Path], folder: Path, cores: int, batch: int, cold: bool):
        self.videos, self.folder, self.cores, self.batch, self.cold = videos, folder, cores, batch, cold
        self.workers = cores if cores > 1 and not cold else 0
        self.data = DataConfig(shards=str(folder), threads=cores)
        self.manifest = load_manifest(folder)
        self.beton, self.raw = folder.parent / "clips.beton", folder.parent / "raw.beton"

    @contextlib.contextmanager
    def floor(self, preset: str = "standard") -> Iterator[Iterator[int]]:
        """Decode JPEGs in memory into reused memory."""
        clips = read_clips(self._stored(preset), self.data)
        with ThreadPoolExecutor(self.cores) as pool:
            yield (sum(pool.map(_decode, clips)) for _ in cycle((0,)))

    def floor_small(self) -> Turn:
        """Decode JPEGs of the preset small."""
        return self.floor("small")

    def floor_archive(self) -> Turn:
        """Decode JPEGs of the preset archive."""
        return self.floor("archive")

    @contextlib.contextmanager
    def ours(self, **changes: Any) -> Iterator[Iterator[int]]:
        """Open ClipLoader as in training."""
        data = self.data.model_copy(update={"workers": self.workers} | changes)
        with ClipLoader(data, CLIP, seed=0, batch=self.batch, micro_batch_size=self.batch) as loader:
            yield (len(batch.clips) for batch in loader.batches(0))

    def small(self) -> Turn:
        """Open ClipLoader on shards of the preset small."""
        return self.ours(shards=str(self._stored("small")))

    def archive(self) -> Turn:
        """Open ClipLoader on shards of the preset archive."""
        return self.ours(shards=str(self._stored("archive")))

    def finetune(self, **changes: Any) -> Turn:
        """Open ClipLoader as in fine-tuning, without augmentation."""
        return self.ours(crop_scale=(0.08, 1.0), repeated_sampling=2, **changes)

    def finetune_shared(self) -> Turn:
        """Open ClipLoader as in fine-tuning, with clips of a video that share their frames."""
        return self.finetune(share_frames=True)

    def _stored(self, preset: str) -> Path:
        """Return the folder of shards of a preset."""
        folder = self.folder.parent / preset
        if preset == "standard":
            return self.folder
        if not folder.exists():
            make_shards(self.videos, folder, self.manifest.samples, "--preset", preset)
        return folder / "shards"

    def ours_threads(self) -> Turn:
        """Open ClipLoader with threads."""
        return self.ours(workers=0)

    def ours_raw(self) -> Turn:
        """Open ClipLoader on stored pixels."""
        folder = self.folder.parent / "raw"
        if not folder.exists():
            # a cold turn reads each file once; a warm turn needs only a few
            make_shards(self.videos, folder, self.manifest.samples if self.cold else self.batch, "--raw")
        return self.ours(shards=str(folder / "shards"))

    def ffcv(self) -> Turn:
        """Open ClipLoader on a .beton."""
        if not self.beton.exists():
            write_beton(self.folder, self.manifest, self.beton)
        return self.ours(beton=str(self.beton))

    @contextlib.contextmanager
    def ffcv_raw(self) -> Iterator[Iterator[int]]:
        """Open FFCV's loader on stored pixels."""
        from ffcv.fields import NDArrayField
        from ffcv.fields.decoders import NDArrayDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor
        from ffcv.writer import DatasetWriter

        if not self.raw.exists():
            clips = read_clips(self.folder, self.data)
            for clip in clips:
                _decode(clip)
            pixels = [(clip[2],) for clip in clips]
            field = NDArrayField(np.dtype("uint8"), pixels[0][0].shape)
            DatasetWriter(str(self.raw), {"clip": field}, num_workers=1).from_indexed_dataset(pixels)
        pipelines = {"clip": [NDArrayDecoder(), ToTensor()]}
        loader = Loader(str(self.raw), self.batch, self.cores, order=OrderOption.RANDOM, pipelines=pipelines, seed=0)
        # FFCV reuses the memory of its batches: copy each batch
        yield (len(clips.clone()) for _ in cycle((0,)) for (clips,) in loader)

    def webdataset(self) -> Turn:
        """Open webdataset on the shards."""
        return self._in_workers(loader_peers.WebShards(sorted(self.folder.glob("*.tar"))))

    def decord(self) -> Turn:
        """Open VideoMAE's loader on the videos."""
        return self._in_workers(loader_peers.Videos(loader_peers.decord, self.videos))

    def torchcodec(self) -> Turn:
        """Open torchcodec on the videos."""
        return self._in_workers(loader_peers.Videos(loader_peers.torchcodec, self.videos))

    def pyav(self) -> Turn:
        """Open PyAV on the videos."""
        return self._in_workers(loader_peers.Videos(loader_peers.pyav, self.videos))

    @contextlib.contextmanager
    def _in_workers(self, dataset: Any) -> Iterator[Iterator[int]]:
        batches: Any = iter(loader_peers.in_workers(dataset, self.batch, self.cores))
        yield (len(batch) for batch in batches)
        batches._shutdown_workers()  # without it they decode ahead during the next turn


def read_clips(folder: Path, data: DataConfig) -> list[tuple[list[bytes], Crop, np.ndarray]]:
    """Return the JPEGs, the crop and the memory of a clip of each sample. The JPEGs end below the crop."""
    reader, clips = open_reader(folder), []
    for sample in range(reader.manifest.samples):
        meta = reader.read_meta(sample)
        frames, crop = ClipRequest(0, 0, 0, sample, 0).cut(meta, data, CLIP)
        jpegs = []
        for jpeg in reader.read_frames(sample, frames):
            header = bytes(jpeg).index(struct.pack(">5B2H", 0xFF, 0xC0, 0, 17, 8, meta.height, meta.width)) + 5
            jpegs.append(bytes(jpeg[:header]) + struct.pack(">H", crop.top + crop.height) + bytes(jpeg[header + 2 :]))
        clips.append((jpegs, crop, np.empty((CLIP.frames, CLIP.size, CLIP.size, 3), np.uint8)))
    reader.close()
    return clips


_local = threading.local()


def _decode(clip: tuple[list[bytes], Crop, np.ndarray]) -> int:
    jpegs, crop, out = clip
    if not hasattr(_local, "memory"):
        _local.memory = np.empty(1 << 22, np.uint8)
    for number, jpeg in enumerate(jpegs):
        # strict decoding would complain of the unread rows
        picture = simplejpeg.decode_jpeg(jpeg, fastupsample=True, buffer=_local.memory, strict=False)
        part = picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        cv2.resize(part, (CLIP.size, CLIP.size), dst=out[number])
        if crop.flip:
            cv2.flip(out[number], 1, dst=out[number])
    return 1


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache (mapped pages stay)."""
    os.sync()
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(batches: Iterator[int], warm: int, seconds: float, limit: float = float("inf")) -> tuple[float, float]:
    """Return clips per second, and CPU milliseconds of this process per clip, after ``warm`` batches.

    The measurement ends after ``seconds`` or after ``limit`` clips.
    """
    for _ in range(warm):
        next(batches)
    clips, wall, cpu = 0, time.perf_counter(), time.process_time()
    while clips < limit and time.perf_counter() - wall < seconds:
        clips += next(batches)
    return clips / (time.perf_counter() - wall), (time.process_time() - cpu) / clips * 1e3


def measure(bench: Bench, names: list[str], rounds: int, seconds: float, cold: bool) -> dict[str, list]:
    """Return the clips per second and the CPU milliseconds per clip of each loader in each round."""
    turns: dict[str, Callable[[], Turn]] = {name: getattr(bench, name) for name in names}
    figures: dict[str, list] = {name: [] for name in names}
    for number in range(rounds + cold):
        for name, turn in turns.items():
            with turn() as batches:
                if cold:
                    forget(bench.folder.parent)
                    found = timed(batches, 0, 60, bench.manifest.samples)
                else:
                    found = timed(batches, bench.cores + 2, seconds)
            if number or not cold:  # FFCV compiles in its first turn
                figures[name].append(found)
            print(f"round {number + 1}: {name:10} {found[0]:7.1f} clips/s", file=sys.stderr)
    return figures


def summary(rounds: dict[str, list], workers: int) -> dict[str, Any]:
    """Return the figures to print and to write."""

    def median_ratio(name: str, other: str) -> float | None:
        pairs = zip(rounds.get(name, ()), rounds.get(other, ()), strict=False)
        ratios = [first[0] / second[0] for first, second in pairs]
        return round(median(ratios), 3) if ratios else None

    in_processes = ("webdataset", "decord", "torchcodec", "pyav", *(OURS if workers else ()))
    return {
        "clips_per_second": {name: round(median(rate for rate, _ in found), 2) for name, found in rounds.items()},
        "cpu_ms_per_clip": {
            name: round(median(ms for _, ms in found), 2) for name, found in rounds.items() if name not in in_processes
        },
        "ours_to_floor": median_ratio("ours", "floor"),
        "small_to_floor": median_ratio("small", "floor_small"),
        "archive_to_floor": median_ratio("archive", "floor_archive"),
        "ours_to_decord": median_ratio("ours", "decord"),
        "small_to_decord": median_ratio("small", "decord"),
        "archive_to_decord": median_ratio("archive", "decord"),
        "small_to_ours": median_ratio("small", "ours"),
        "archive_to_ours": median_ratio("archive", "ours"),
        "shared_to_finetune": median_ratio("finetune_shared", "finetune"),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    rates, cpu = figures["clips_per_second"], figures["cpu_ms_per_clip"]
    print(f"{figures['cores']} cores, {figures['videos']} videos    clips/s  of floor  x decord  CPU ms a clip")
    for name, rate in rates.items():
        of_floor = f"{rate / rates['floor']:.3f}" if "floor" in rates else ""
        of_decord = f"{rate / rates['decord']:.1f}" if "decord" in rates else ""
        print(f"{name:21} {rate:10.1f} {of_floor:>9} {of_decord:>9} {cpu.get(name, ''):>14}")
    ratios = {name.replace("_", " "): value for name, value in figures.items() if "_to_" in name and value}
    print("medians over rounds:", ", ".join(f"{name} {value}" for name, value in ratios.items()))


def main() -> None:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_videos_option(parser)
    add("--cores", type=int, default=1, help="cores of each loader, including this process (%(default)s)")
    add("--samples", type=int, default=32, help="videos in the shards, repeated as needed (%(default)s)")
    add("--batch", type=int, default=8, help="clips per batch (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds (%(default)s)")
    add("--seconds", type=float, default=2.0, help="seconds of a turn (%(default)s)")
    add("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="measure only these loaders")
    add("--cold", action="store_true", help="empty page cache: one epoch per turn, threads only")
    add("--json", type=output_file, help="also write the figures as JSON")
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    if options.cores > len(available):
        parser.error(f"--cores must be at most {len(available)}, the cores of this process, not {options.cores}")
    videos = find_videos(parser, options.videos)
    here = loader_peers.installed()
    missing = [name for name in options.only if not here.get(name.partition("_")[0], True)]
    if missing:
        print(f"not installed, skipped: {', '.join(missing)} (pip install 'motionmae[bench,ffcv]')", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(videos, Path(folder), options.samples)
        os.sched_setaffinity(0, available[: options.cores])
        bench = Bench(videos, shards, options.cores, options.batch, options.cold)
        names = [name for name in NAMES if name in options.only and name not in missing]
        rounds = measure(bench, names, options.rounds, options.seconds, options.cold)
    figures = {"cores": options.cores, "videos": len(videos), "cold": options.cold, **summary(rounds, bench.workers)}
    show(figures)
    write_json(options.json, figures)


if __name__ == "__main__":
    run_script(main)

"""How near the loader comes to what decoding alone costs: `python benchmarks/loader.py --videos DIR --threads 2`.

Stores the videos as shards in a temporary folder and measures, in turns in one process on the same frames: the floor
(JPEG decoding, crop and resize of frames that lie in memory, into memory that is used again) and the loader (reads,
checksums, sampling, order, threads and batches of 16 x 224 x 224 ready for the device). Prints clips a second.

Where FFCV is installed, two rows more: `ffcv`, the loader on a .beton of the same shards, and `ffcv_raw`, FFCV's own
loader on decoded clips of fixed frames and crop (2.4 MB each), which is what a cache of pixels could give. `--cold`
makes the system forget the files before every pass, so that they come from the disk (without `ffcv_raw`).
"""

import argparse
import importlib.util
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import numpy as np
import simplejpeg

from data_tools.make_beton import write_beton
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.augment import random_crop
from motionmae.data.loader import ClipLoader
from motionmae.data.manifest import EncoderSettings, Manifest, load_manifest, write_manifest
from motionmae.data.randomness import KeyedRandom
from motionmae.data.reader import ShardReader
from motionmae.data.sampling import random_frames
from motionmae.data.shards import ShardWriter


def store(videos: list[Path], folder: Path, samples: int, short_side: int = 256, quality: int = 90) -> None:
    """Write ``samples`` samples, the videos over and over, at most 300 frames each."""
    stored = []
    for video in videos:
        with av.open(str(video)) as container:
            pictures = [f.to_ndarray(format="rgb24") for f in itertools.islice(container.decode(video=0), 300)]
        height, width = pictures[0].shape[:2]
        scale = short_side / min(height, width)
        size = (round(width * scale), round(height * scale))
        stored.append((size, [simplejpeg.encode_jpeg(cv2.resize(p, size), quality) for p in pictures]))
    with ShardWriter(folder / "bench-000000.tar") as shard:
        for number, ((width, height), jpegs) in zip(range(samples), itertools.cycle(stored), strict=False):
            meta = {"label": 0, "class_name": "", "source": "", "fps": 30.0, "frames": len(jpegs), "stride": 1}
            shard.write(f"{number:08d}", jpegs, meta | {"height": height, "width": width, "times": [0.0] * len(jpegs)})
    assert shard.entry is not None
    settings = EncoderSettings(short_side=short_side, jpeg_quality=quality)
    write_manifest(folder, Manifest("bench", "train", ("none",), settings, (shard.entry,)))


class Floor:
    """Decoding, crop and resize, of clips like the loader's whose JPEGs are in memory already."""

    def __init__(self, folder: Path, clip: ClipConfig, data: DataConfig, clips: int):
        reader = ShardReader(folder)
        self.size = clip.size
        self.pool = ThreadPoolExecutor(data.threads)
        self.clips = []
        for number in range(clips):
            meta, random = reader.read_meta(number), KeyedRandom("floor", number)
            jpegs = [bytes(jpeg) for jpeg in reader.read_frames(number, random_frames(meta, clip, random))]
            crop = random_crop(meta.height, meta.width, clip.size, data, random)
            self.clips.append((jpegs, crop, np.empty((clip.frames, clip.size, clip.size, 3), np.uint8)))

    def run(self) -> int:
        """Decode every clip once; returns how many."""
        return sum(self.pool.map(self._clip, self.clips))

    def _clip(self, task: tuple) -> int:
        jpegs, crop, out = task
        for jpeg, target in zip(jpegs, out, strict=True):
            picture = simplejpeg.decode_jpeg(jpeg)
            part = picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            cv2.resize(part, (self.size, self.size), dst=target)
        return 1


def store_raw(floor: Floor, path: Path) -> None:
    """Write the floor's clips, decoded, as FFCV stores arrays."""
    from ffcv.fields import NDArrayField
    from ffcv.writer import DatasetWriter

    floor.run()
    pixels = [(out,) for _, _, out in floor.clips]
    field = NDArrayField(np.dtype("uint8"), pixels[0][0].shape)
    DatasetWriter(str(path), {"clip": field}, num_workers=1).from_indexed_dataset(pixels)


class RawLoader:
    """FFCV's own loader on decoded clips, in random order, each batch copied out of the buffer that FFCV uses again."""

    def __init__(self, path: Path, threads: int, batch: int):
        from ffcv.fields.decoders import NDArrayDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        pipelines = {"clip": [NDArrayDecoder(), ToTensor()]}
        self.loader = Loader(str(path), batch, threads, order=OrderOption.RANDOM, pipelines=pipelines, seed=0)

    def run(self) -> int:
        """An epoch; returns its clips."""
        return sum(len(clips.clone()) for (clips,) in self.loader)

    def close(self) -> None:
        """The file is unmapped when the loader goes."""


def forget(folder: Path) -> None:
    """Make the system drop what its page cache holds of the files of a folder (mapped pages stay)."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(run: Callable[[], int]) -> tuple[float, float]:
    """Clips a second, and milliseconds of processor time a clip (which other users of the machine disturb less)."""
    wall, cpu = time.perf_counter(), time.process_time()
    clips = run()
    return clips / (time.perf_counter() - wall), (time.process_time() - cpu) / clips * 1e3


class OurLoader:
    """The loader, on shards or on a .beton."""

    def __init__(self, data: DataConfig, micro_batch: int, items: int):
        self.loader = ClipLoader(data, ClipConfig(), seed=0, batch=micro_batch, micro_batch=micro_batch)
        self.items = items

    def run(self) -> int:
        """Take micro-batches from the start of an epoch; returns how many clips they held."""
        batches = self.loader.batches(0)
        clips = sum(len(batch.clips) for batch in itertools.islice(batches, self.items))
        batches.close()
        return clips

    def close(self) -> None:
        """End its threads."""
        self.loader.close()


def measure(
    folder: Path, threads: int, samples: int, micro_batch: int, rounds: int, cold: bool = False
) -> dict[str, list]:
    """(clips a second, CPU ms a clip) of floor, loader and FFCV, in turn, of every round but the first."""
    data = DataConfig(shards=str(folder), threads=threads, flip=False)
    floor = Floor(folder, ClipConfig(), data, samples)
    ours = partial(OurLoader, micro_batch=micro_batch, items=samples // micro_batch)
    loaders: dict[str, Callable[[], Any]] = {"ours": partial(ours, data)}
    if importlib.util.find_spec("ffcv"):
        write_beton(folder, load_manifest(folder), folder / "bench.beton")
        store_raw(floor, folder / "raw.beton")
        loaders["ffcv"] = partial(ours, replace(data, beton=str(folder / "bench.beton")))
        if not cold:  # FFCV compiles its pipeline anew in each loader, and a mapped file is not forgotten
            loaders["ffcv_raw"] = partial(RawLoader, folder / "raw.beton", threads, micro_batch)
    figures: dict[str, list] = {name: [] for name in ("floor", *loaders)}
    opened = {name: make() for name, make in loaders.items()}
    for _ in range(rounds + 1):
        figures["floor"].append(timed(floor.run))
        for name, make in loaders.items():
            if cold:
                opened.pop(name).close()
                opened[name] = make()
                forget(folder)
            figures[name].append(timed(opened[name].run))
    for loader in opened.values():
        loader.close()
    return {name: values[1:] for name, values in figures.items()}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="read from the disk in every pass")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    videos = sorted(path for path in options.videos.rglob("*") if path.suffix in (".mp4", ".mkv", ".webm", ".avi"))
    with tempfile.TemporaryDirectory() as folder:
        store(videos, Path(folder), options.samples)
        rounds = measure(
            Path(folder), options.threads, options.samples, options.micro_batch, options.rounds, options.cold
        )
    rate = {name: median(wall for wall, _ in values) for name, values in rounds.items()}
    cpu = {name: median(ms for _, ms in values) for name, values in rounds.items()}
    pairs = list(zip(rounds["ours"], rounds["floor"], strict=True))
    ratio = median(ours[0] / floor[0] for ours, floor in pairs)
    cpu_ratio = median(floor[1] / ours[1] for ours, floor in pairs)
    print(f"{options.threads} threads  clips/s  CPU ms a clip")
    for name in rate:
        print(f"{name:9}  {rate[name]:7.1f}  {cpu[name]:13.2f}")
    print(f"{'ratio':9}  {ratio:7.3f}  {cpu_ratio:13.3f}")
    if options.json:
        figures = {"threads": options.threads, "clips_per_second": rate, "cpu_ms_per_clip": cpu}
        options.json.write_text(json.dumps(figures | {"ratio": ratio, "cpu_ratio": cpu_ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()

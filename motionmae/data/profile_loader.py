"""What loading costs: how many clips a second this machine gives, where the time goes, how many cores that makes."""

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
import psutil

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clips import random_cut
from motionmae.data.jpeg import decode_clip
from motionmae.data.loader import ClipLoader
from motionmae.data.rng import KeyedRandom
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError


@dataclass(frozen=True)
class Loading:
    """Measured figures of one rank's loading."""

    clips_per_second: float
    """Of the loader as the configuration has it."""
    decoders: int
    """Its processes or threads."""
    bytes_per_clip: float
    """Stored bytes that a clip needs."""
    cpu_ms: float
    """CPU milliseconds a clip, end to end: of all the loader's threads and processes while it loaded."""
    read_ms: float
    """Of them, as measured alone on one core: finding, reading and checking the frames."""
    decode_ms: float
    """Of them, as measured alone on one core: decoding, cropping and resizing."""
    corrupt: int
    """Samples that could not be read meanwhile."""

    @property
    def bytes_per_second(self) -> float:
        """What the loader reads."""
        return self.clips_per_second * self.bytes_per_clip

    @property
    def decode_share(self) -> float:
        """Of a clip's CPU time."""
        return min(1.0, self.decode_ms / self.cpu_ms)

    @property
    def clips_per_core(self) -> float:
        """Clips a second that one busy core gives."""
        return 1e3 / self.cpu_ms

    def cores(self, clips_per_second: float) -> int:
        """Cores for a GPU that trains so many clips a second; what training itself computes comes on top."""
        return math.ceil(clips_per_second / self.clips_per_core)


def measure_loading(data: DataConfig, clip: ClipConfig, micro_batch_size: int, seconds: float) -> Loading:
    """Load clips for about ``seconds`` as a run would, then half of that on one core, step by step.

    Raises:
        UserError: there are no shards, a .beton is read in their place, or too many are damaged.
    """
    if data.beton:
        raise UserError(f"data.beton={data.beton}: doctor measures shards; benchmarks/loader.py measures a .beton too")
    with ClipLoader(data, clip, seed=0, batch=micro_batch_size, micro_batch_size=micro_batch_size) as loader:
        batches = loader.batches(0)
        for _ in range(data.prefetch):  # what starting costs is not the question
            next(batches)
        clips, started, used = 0, time.perf_counter(), _cpu_seconds()
        while time.perf_counter() - started < seconds:
            clips += len(next(batches).clips)
        rate = clips / (time.perf_counter() - started)
        cpu_ms = 1e3 * (_cpu_seconds() - used) / clips
        corrupt = len(loader.corrupt_samples)
        decoders = data.workers or data.threads
        read_ms, decode_ms, size = _one_by_one(
            ShardReader(data.shards, loader.manifest, data=data), data, clip, seconds / 2
        )
    return Loading(rate, decoders, size, cpu_ms, read_ms, decode_ms, corrupt)


def _cpu_seconds() -> float:
    """CPU seconds that this process and those it started have used."""
    this = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (this, *this.children(recursive=True)))  # user, system


def _one_by_one(reader: ShardReader, data: DataConfig, clip: ClipConfig, seconds: float) -> tuple[float, float, float]:
    """CPU milliseconds of reading and of decoding, and stored bytes, a clip."""
    out = np.empty((clip.frames, clip.size, clip.size, 3), np.uint8)
    read = decode = size = 0.0
    started, clips = time.perf_counter(), 0
    for number in itertools.count():
        if clips and time.perf_counter() - started > seconds:
            break
        sample = number % reader.manifest.samples
        try:
            begin = time.thread_time()
            meta = reader.read_meta(sample)
            frames, crop = random_cut(meta, data, clip, KeyedRandom("clip", 0, 0, sample, number))
            jpegs = reader.read_frames(sample, frames)
            middle = time.thread_time()
            decode_clip(jpegs, meta, crop, out)
        except CorruptSample:  # the loader has counted it
            continue
        read, decode = read + middle - begin, decode + time.thread_time() - middle
        size += sum(len(jpeg) for jpeg in {id(jpeg): jpeg for jpeg in jpegs}.values())
        clips += 1
    reader.close()
    return 1e3 * read / clips, 1e3 * decode / clips, size / clips

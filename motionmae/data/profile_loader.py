"""Profile the loader: clips per second on this machine, CPU time per clip, and cores needed per GPU."""

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
import psutil

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipRequest, SampleReader, read_frames
from motionmae.data.jpeg import Target, decode_clips
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import open_samples
from motionmae.data.shards.errors import CorruptSample


@dataclass(frozen=True)
class LoaderProfile:
    """Measurements of the loader of one rank. Times are CPU milliseconds per clip."""

    clips_per_second: float  # throughput of the loader as configured
    decoders: int  # number of decoding processes or threads
    bytes_per_clip: float  # stored bytes read per clip
    cpu_ms: float  # sum over all threads and processes of the loader
    read_ms: float  # time to find, read and check the frames, measured separately on one core
    decode_ms: float  # time to decode, crop and resize, measured separately on one core
    corrupt: int  # number of corrupt samples

    @property
    def bytes_per_second(self) -> float:
        return self.clips_per_second * self.bytes_per_clip

    @property
    def decode_share(self) -> float:
        """Fraction of the CPU time that decoding takes."""
        return min(1.0, self.decode_ms / self.cpu_ms)

    @property
    def clips_per_core(self) -> float:
        """Clips per second that one core loads."""
        return 1e3 / self.cpu_ms

    def cores(self, clips_per_second: float) -> int:
        """Return the number of cores that load ``clips_per_second`` for a GPU. The trainer needs further cores."""
        return math.ceil(clips_per_second / self.clips_per_core)


def profile_loader(data: DataConfig, clip: ClipConfig, micro_batch_size: int, seconds: float) -> LoaderProfile:
    """Load clips as a run does for ``seconds``, then measure reading and decoding separately for ``seconds / 2``.

    Raises UserError if there are no shards, or too many samples are corrupt.
    """
    with ClipLoader(data, clip, seed=0, batch=micro_batch_size, micro_batch_size=micro_batch_size) as loader:
        batches = loader.batches(0)
        for _ in range(data.prefetch):  # warm-up, not measured
            next(batches)
        clips, started, used = 0, time.perf_counter(), _cpu_seconds()
        while time.perf_counter() - started < seconds:
            clips += len(next(batches).clips)
        rate = clips / (time.perf_counter() - started)
        cpu_ms = 1e3 * (_cpu_seconds() - used) / clips
        corrupt = len(loader.corrupt_samples)
        decoders = data.workers or data.threads
        reader = open_samples(data, loader.sources)
        read_ms, decode_ms, size = _profile_steps(reader, data, clip, seconds / 2)
    return LoaderProfile(rate, decoders, size, cpu_ms, read_ms, decode_ms, corrupt)


def _cpu_seconds() -> float:
    this = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (this, *this.children(recursive=True)))  # user and system time


def _profile_steps(reader: SampleReader, data: DataConfig, clip: ClipConfig, seconds: float) -> list[float]:
    """Return the CPU milliseconds per clip for reading and for decoding, and the stored bytes per clip."""
    outs = np.empty((data.repeated_sampling, clip.frames, clip.size, clip.size, 3), np.uint8)
    read = decode = size = 0.0
    started, clips = time.perf_counter(), 0
    for number in itertools.count():
        if clips and time.perf_counter() - started > seconds:
            break
        epoch, sample = divmod(number, reader.manifest.samples)
        try:
            begin = time.thread_time()
            meta = reader.read_meta(sample)
            cuts = (ClipRequest(0, 0, epoch, sample, repeat).cut(meta, data, clip) for repeat in range(len(outs)))
            targets = [Target(*cut, out) for cut, out in zip(cuts, outs, strict=True)]
            jpegs = read_frames(reader, sample, targets)
            middle = time.thread_time()
            decode_clips(jpegs, meta, targets)
        except CorruptSample:  # the loader has already counted the sample
            continue
        read, decode = read + middle - begin, decode + time.thread_time() - middle
        size += sum(map(len, jpegs.values()))
        clips += len(outs)
    reader.close()
    return [1e3 * read / clips, 1e3 * decode / clips, size / clips]

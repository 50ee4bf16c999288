"""Clips per second of the loader when some reads wait for the disk.

Examples:
  python -m benchmarks.slow_disk --videos KINETICS --share 0.06 --delay 100     # one shard of 16 on a slow disk
  python -m benchmarks.slow_disk --videos KINETICS --share 1 --delay 10         # a busy network file system

A read of the frames of some samples sleeps before it begins, which takes no core, as a wait for a disk does.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.loader import timed
from benchmarks.script import add_videos_option, build_parser, find_videos, make_shards, run_script, write_json
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.clip_decoder import ClipDecoder, SampleDecoder, SampleReader
from motionmae.data.decode_workers import WorkerDecoder
from motionmae.data.loader import ClipLoader
from motionmae.data.mixture.sources import Sources
from motionmae.data.open_shards import open_samples
from motionmae.data.shards.reader import SampleMeta
from motionmae.files import output_file


class SlowReader:
    """Reader whose first samples are on a slow disk."""

    def __init__(self, reader: SampleReader, slow: int, delay: float):
        self._reader, self._slow, self._delay = reader, slow, delay
        self.manifest = reader.manifest

    def read_meta(self, sample_id: int) -> SampleMeta:
        return self._reader.read_meta(sample_id)

    def read_frames(self, sample_id: int, frame_indices: Sequence[int]) -> Sequence[bytes | memoryview]:
        if sample_id < self._slow:
            time.sleep(self._delay)
        return self._reader.read_frames(sample_id, frame_indices)

    def read_flow(self, sample_id: int, frame_indices: Sequence[int]) -> Sequence[bytes | memoryview]:
        return self._reader.read_flow(sample_id, frame_indices)

    def close(self) -> None:
        self._reader.close()


def _open_one(slow: int, delay: float, data: DataConfig, clip: ClipConfig, sources: Sources) -> SampleDecoder:
    return SampleDecoder(SlowReader(open_samples(data, sources), slow, delay), data, clip)


def _open(slow: int, delay: float, data: DataConfig, clip: ClipConfig, sources: Sources) -> ClipDecoder:
    open_one = partial(_open_one, slow, delay, data, clip, sources)
    return WorkerDecoder(open_one, data.workers) if data.workers else open_one()


@contextlib.contextmanager
def opened(data: DataConfig, size: int, batch: int, slow: int, delay: float) -> Iterator[Iterator[int]]:
    """Open ClipLoader with a slow reader. It yields the number of clips in each batch."""
    with mock.patch("motionmae.data.loader.open_decoder", partial(_open, slow, delay)):
        loader = ClipLoader(data, ClipConfig(size=size), seed=0, batch=batch, micro_batch_size=batch)
    with loader:
        yield (len(found.clips) for found in loader.batches(0))


def measure(data: DataConfig, options: Any, slow: int) -> list[float]:
    """Return the clips per second without and with the waits."""
    rates = []
    for count in (0, slow):
        with opened(data, options.size, options.batch, count, options.delay / 1e3) as batches:
            rates.append(timed(batches, options.prefetch + 4, options.seconds)[0])
    return rates


def main() -> None:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_videos_option(parser)
    add("--share", type=float, default=0.0625, help="share of the samples on the slow disk (%(default)s)")
    add("--delay", type=float, default=100, help="milliseconds that a read there waits (%(default)s)")
    add("--workers", type=int, nargs="+", default=[2, 16], help="decoding processes (%(default)s)")
    add("--threads", type=int, nargs="*", default=[16], help="decoding threads, in further rows (%(default)s)")
    add("--size", type=int, default=112, help="pixels of a clip (%(default)s)")
    add("--samples", type=int, default=64, help="videos, repeated as needed (%(default)s)")
    add("--batch", type=int, default=8, help="clips per batch (%(default)s)")
    add("--prefetch", type=int, default=16, help="data.prefetch (%(default)s)")
    add("--seconds", type=float, default=3.0, help="seconds of a measurement (%(default)s)")
    add("--json", type=output_file, help="also write the figures as JSON")
    options = parser.parse_args()
    videos = find_videos(parser, options.videos)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        side = str(options.size * 8 // 7)
        shards = make_shards(videos, Path(folder), options.samples, "--short-side", side)
        kinds = [("workers", number) for number in options.workers] + [
            ("threads", number) for number in options.threads
        ]
        for kind, number in kinds:
            data = DataConfig(shards=str(shards), prefetch=options.prefetch, **{"workers": 0, kind: number})
            rate, slow_rate = measure(data, options, round(options.share * options.samples))
            figures[f"{number} {kind}"] = {"clips_per_second": round(rate, 1), "with_waits": round(slow_rate, 1)}
            print(f"{number} {kind}: {rate:.1f}, with waits {slow_rate:.1f} clips/s", file=sys.stderr)
    print(f"{options.share:.0%} of the reads wait {options.delay:g} ms    clips/s  with waits")
    for name, row in figures.items():
        print(f"{name:36} {row['clips_per_second']:9} {row['with_waits']:11}")
    write_json(options.json, figures)


if __name__ == "__main__":
    run_script(main)

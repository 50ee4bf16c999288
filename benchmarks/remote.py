"""First epoch of remote shards over a network with latency, with and without prefetch, and of other loaders.

Examples:
  python -m benchmarks.remote --videos KINETICS
  python -m benchmarks.remote --videos KINETICS --only ours_http ours_s3 --downloads 0 1 4 8 --json remote.json

A proxy on loopback delays every connection by --latency and limits each to --rate, as one TCP stream over a long path
is limited. Each row begins with an empty cache and reads every clip once, 16 x 112 x 112, as fast as it can:

  local         ClipLoader on the folder, without a network
  ours_http     ClipLoader on http://, for each number of --downloads (data.downloads; 0: no prefetch)
  ours_s3       ClipLoader on s3:// (moto's server)
  webdataset    webdataset on http://, one connection (curl) per DataLoader process
  streaming     MosaicML Streaming on s3://, one download at a time per DataLoader process

first s: time to the first batch. waited s: time that a consumer of --pace clips per second waits after it.
"""

import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.peers import remote as remote_peers
from benchmarks.peers.slow_network import BUCKET, Link, Server, serving
from benchmarks.script import add_videos_option, build_parser, find_videos, make_shards, run_script, write_json
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader
from motionmae.files import output_file

CLIP = ClipConfig(size=112)
NAMES = ("local", "ours_http", "ours_s3", "webdataset", "streaming")

Opened = contextlib.AbstractContextManager[Iterator[int]]


class Epoch(NamedTuple):
    """Measurements of one epoch."""

    first: float  # seconds to the first batch
    rate: float  # clips per second, with the first batch
    waited: float  # seconds that a consumer of a fixed pace waits for later batches
    connections: int


@contextlib.contextmanager
def ours(data: DataConfig, batch: int, cache: Path) -> Iterator[Iterator[int]]:
    """Open ClipLoader with an empty cache."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        settings = data.model_copy(update={"cache": f"{folder}/cache"})
        with ClipLoader(settings, CLIP, seed=0, batch=batch, micro_batch_size=batch) as loader:
            yield (len(found.clips) for found in loader.batches(0))


def read_epoch(opened: Callable[[], Opened], samples: int, pace: float, server: Server) -> Epoch:
    """Read ``samples`` clips, and compute what a consumer of ``pace`` clips per second would wait."""
    server.connections()
    started = time.perf_counter()
    times: list[float] = []
    counts: list[int] = []
    with opened() as batches:
        while sum(counts) < samples:
            counts.append(next(batches))
            times.append(time.perf_counter() - started)
    due, waited = times[0], 0.0
    for seconds, count in zip(times[1:], counts, strict=False):
        due += count / pace  # the consumer has finished the batch before
        waited += max(0.0, seconds - due)
        due = max(due, seconds)
    return Epoch(times[0], sum(counts) / times[-1], waited, server.connections())


def rows(names: list[str], folder: Path, server: Server, options: Any, cache: Path) -> dict[str, Callable[[], Opened]]:
    """Return the loaders to measure by the name of their row."""
    data = DataConfig(shuffle_window_shards=4, threads=options.cores)
    found: dict[str, Callable[[], Opened]] = {}
    for name, url in (
        ("local", str(folder / "shards")),
        ("ours_http", f"{server.http}/shards"),
        ("ours_s3", f"s3://{BUCKET}/shards"),
    ):
        if name in names:
            for downloads in options.downloads if name != "local" else (0,):
                label = name if name == "local" else f"{name}, {downloads} downloads"
                settings = data.model_copy(update={"shards": url, "downloads": downloads})
                found[label] = partial(ours, settings, options.batch, cache)
    shards = sorted(path.name for path in (folder / "shards").glob("*.tar"))
    if "webdataset" in names:
        urls = [f"{server.http}/shards/{name}" for name in shards]
        found["webdataset"] = partial(remote_peers.webdataset, urls, options.batch, options.processes)
    if "streaming" in names:
        remote = f"s3://{BUCKET}/mds"
        found["streaming"] = partial(remote_peers.streaming, remote, cache, options.batch, options.processes)
    return found


def main() -> None:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_videos_option(parser)
    add("--latency", type=float, default=50, help="milliseconds of a round trip (%(default)s)")
    add("--rate", type=float, default=25, help="MB/s of one connection (%(default)s)")
    add("--downloads", type=int, nargs="+", default=[0, 1, 4, 8], help="values of data.downloads (%(default)s)")
    add("--cores", type=int, default=2, help="decoding threads of our loader (%(default)s)")
    add("--processes", type=int, default=2, help="DataLoader processes of the other loaders (%(default)s)")
    add("--samples", type=int, default=64, help="videos, repeated as needed; four per shard (%(default)s)")
    add("--batch", type=int, default=8, help="clips per batch (%(default)s)")
    add("--pace", type=float, default=20, help="clips per second of the consumer (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds (%(default)s)")
    add("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="measure only these loaders")
    add("--json", type=output_file, help="also write the figures as JSON")
    options = parser.parse_args()
    videos = find_videos(parser, options.videos)
    names = [name for name in options.only if name != "streaming" or importlib.util.find_spec("streaming")]
    if len(names) < len(options.only):
        print("not installed, skipped: streaming (pip install mosaicml-streaming)", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary) / "data", Path(temporary) / "cache"
        cache.mkdir()
        make_shards(videos, folder, options.samples, "--short-side", "128")
        if "streaming" in names:
            remote_peers.write_mds(folder / "shards", folder / "mds")
        with serving(folder, Link(options.latency / 1e3, options.rate * 1e6)) as server:
            todo = rows(names, folder, server, options, cache)
            epochs: dict[str, list[Epoch]] = {name: [] for name in todo}
            for number in range(options.rounds):
                for name, opened in todo.items():
                    epochs[name].append(read_epoch(opened, options.samples, options.pace, server))
                    print(f"round {number + 1}: {name:24} {epochs[name][-1].rate:7.1f} clips/s", file=sys.stderr)
    figures = {name: Epoch(*map(median, zip(*rounds, strict=True))) for name, rounds in epochs.items()}
    print(f"{options.latency:g} ms, {options.rate:g} MB/s  clips/s  first s  waited s  connections")
    for name, epoch in figures.items():
        print(f"{name:24} {epoch.rate:7.1f} {epoch.first:8.2f} {epoch.waited:9.2f} {epoch.connections:12.0f}")
    write_json(options.json, {name: epoch._asdict() for name, epoch in figures.items()})


if __name__ == "__main__":
    run_script(main)

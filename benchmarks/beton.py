"""Clips per second from shards and from FFCV files (.beton), for JPEGs and for pixels of the training size.

Examples:
  python -m benchmarks.beton --videos KINETICS --cores 1
  python -m benchmarks.beton --videos KINETICS --cores 2 --cold --json beton.json

The loader is ClipLoader in all rows, with clips of 16 x SIZE x SIZE, one frame of 4 and a random crop. Frames are
stored with a short side of 8/7 of SIZE, as 256 for 224. The rows take turns. A rate is the median over the rounds; a
ratio is the median of the ratios within a round.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.loader import forget, timed
from benchmarks.script import add_videos_option, build_parser, find_videos, make_shards, run_script, write_json
from data_tools.make_beton import write_beton
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import load_manifest, open_samples
from motionmae.files import output_file

FORMS = ("JPEG shards", "raw shards", "JPEG .beton", "raw .beton")


class Source(NamedTuple):
    """Files that a row reads."""

    name: str
    data: DataConfig
    clip: ClipConfig

    def kilobytes(self) -> float:
        """Return the stored kB of one clip, if each frame is read once."""
        reader = open_samples(self.data)
        frames = [reader.read_frames(sample, [0])[0] for sample in range(reader.manifest.samples)]
        return self.clip.frames * sum(map(len, frames)) / len(frames) / 1e3


def sources(videos: list[Path], folder: Path, size: int, samples: int, data: DataConfig) -> list[Source]:
    """Write the files of one clip size, and return a row for each."""
    clip, side = ClipConfig(size=size), str(size * 8 // 7)
    found = []
    for encoding, options in (("JPEG", ()), ("raw", ("--raw",))):
        shards = make_shards(videos, folder / f"{encoding}{size}", samples, "--short-side", side, *options)
        beton = shards.parent / "clips.beton"
        write_beton(shards, load_manifest(shards), beton)
        for form, path in (("shards", ""), (".beton", str(beton))):
            changes = {"shards": str(shards), "beton": path}
            found.append(Source(f"{size} {encoding} {form}", data.model_copy(update=changes), clip))
    return sorted(found, key=lambda source: FORMS.index(source.name.partition(" ")[2]))


@contextlib.contextmanager
def opened(source: Source, batch: int) -> Iterator[Iterator[int]]:
    """Open the loader of a row. It yields the number of clips in each batch."""
    with ClipLoader(source.data, source.clip, seed=0, batch=batch, micro_batch_size=batch) as loader:
        yield (len(found.clips) for found in loader.batches(0))


def measure(rows: list[Source], options: Any, folder: Path) -> dict[str, list[float]]:
    """Return the clips per second of each row in each round."""
    rates: dict[str, list[float]] = {source.name: [] for source in rows}
    for number in range(options.rounds):
        for source in rows:
            with opened(source, options.batch) as batches:
                if options.cold:
                    forget(folder)
                    rate, _ = timed(batches, 0, 60, options.samples)
                else:
                    rate, _ = timed(batches, options.cores + 6, options.seconds)
            rates[source.name].append(rate)
            print(f"round {number + 1}: {source.name:16} {rate:8.1f} clips/s", file=sys.stderr)
    return rates


def summary(rows: list[Source], rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the figures of each row, by its name."""

    def ratio(name: str, other: str) -> float:
        return round(median(one / base for one, base in zip(rates[name], rates[other], strict=True)), 2)

    figures = {}
    for source in rows:
        size = source.name.partition(" ")[0]
        rate, kilobytes = median(rates[source.name]), source.kilobytes()
        figures[source.name] = {
            "clips_per_second": round(rate, 1),
            "to_jpeg_shards": ratio(source.name, f"{size} {FORMS[0]}"),
            "to_raw_shards": ratio(source.name, f"{size} {FORMS[1]}"),
            "kB_per_clip": round(kilobytes),
            "MB_per_second": round(rate * kilobytes / 1e3),
        }
    return figures


def main() -> None:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_videos_option(parser)
    add("--cores", type=int, default=1, help="cores of each loader; with 2 or more, processes decode (%(default)s)")
    add("--sizes", type=int, nargs="+", default=[112, 224], help="clip sizes in pixels (%(default)s)")
    add("--samples", type=int, default=24, help="videos in the shards, repeated as needed (%(default)s)")
    add("--batch", type=int, default=12, help="clips per batch (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds (%(default)s)")
    add("--seconds", type=float, default=1.0, help="seconds of a turn (%(default)s)")
    add("--cold", action="store_true", help="empty page cache: one epoch per turn, threads only")
    add("--json", type=output_file, help="also write the figures as JSON")
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    if options.cores > len(available):
        parser.error(f"--cores must be at most {len(available)}, the cores of this process, not {options.cores}")
    videos = find_videos(parser, options.videos)
    data = DataConfig(threads=options.cores, workers=options.cores if options.cores > 1 and not options.cold else 0)
    figures: dict[str, dict[str, float]] = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows = sources(videos, Path(folder), size, options.samples, data)
            os.sched_setaffinity(0, available[: options.cores])
            figures |= summary(rows, measure(rows, options, Path(folder)))
            os.sched_setaffinity(0, available)
    print(f"{options.cores} cores, {len(videos)} videos  clips/s  x JPEG shards  x raw shards  kB a clip  MB/s")
    for name, row in figures.items():
        print(f"{name:21} {row['clips_per_second']:9} {row['to_jpeg_shards']:14} {row['to_raw_shards']:13}", end="")
        print(f" {row['kB_per_clip']:10} {row['MB_per_second']:5}")
    write_json(options.json, {"cores": options.cores, "cold": options.cold, "rows": figures})


if __name__ == "__main__":
    run_script(main)

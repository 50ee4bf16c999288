"""Print figures of a folder of shards: samples, frames, durations, sizes, classes, quarantined videos."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.filesize import decimal

from data_tools.quarantine import QUARANTINE, QuarantineRow, read_quarantine
from data_tools.reporting import damage_as_user_error
from motionmae.commands.app import Command, add_json_argument
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.format import load_index
from motionmae.data.shards.manifest import Manifest
from motionmae.errors import UserError
from motionmae.files import atomic_path, write_json
from motionmae.json_text import InvalidJsonError, parse_json
from motionmae.outputs import SIGNATURE, output_argument, signed
from motionmae.screen import Table, draw_bar, show
from motionmae.text import picture_text, say

_EXAMPLES = """\
examples:
  motionmae shards stats data/toy/train
  motionmae shards stats data/toy/train --json stats.json --picture classes.png"""

NAMED_CLASSES = 60
"""Classes with a bar of their own in the picture."""
_FIRST_SEGMENT = "-00000"  # end of the key of the first segment of a video (data_tools.make_shards.shard_plan)
_SMALLEST_FPS = 1e-6  # frames per second; a smaller number in a shard is an unknown rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards (--out of `motionmae shards make`)")
    add_json_argument(parser, "bytes_per_frame", "seconds_per_video")
    picture = output_argument(signed, ".png", ".pdf", ".svg")
    parser.add_argument("--picture", type=picture, metavar="FILE", help="draw the number of videos per class")
    parser.add_argument("--classes", type=int, default=20, help="maximum number of classes to print (%(default)s)")


@damage_as_user_error()
def run(arguments: argparse.Namespace) -> int:
    figures = collect(arguments.shards, load_manifest(arguments.shards))
    print_tables(figures, arguments.shards, arguments.classes)
    if arguments.json:
        write_json(arguments.json, figures)
    if arguments.picture:
        draw_classes(figures, arguments.picture)
    return 0


def collect(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Compute statistics from the indexes of the shards. Raise CorruptSample if an index is damaged.

    A figure is a number, (smallest, median, largest), or a dictionary: quarantined (reason to number of videos) and
    classes (name to number of samples). Videos of unknown frame rate do not count in seconds, fps and hours. If videos
    are in segments, figures per video are figures per segment.
    """
    names = ("key", "label", "fps", "frames", "stride", "height", "width")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for shard in manifest.shards:
        index = load_index(folder / shard.name, shard)[1]
        for name, column in columns.items():
            column.extend(index[name])
    timing = zip(columns["frames"], columns["stride"], columns["fps"], strict=True)
    seconds = [frames * stride / fps for frames, stride, fps in timing if fps > _SMALLEST_FPS]
    labels = Counter(label for label in columns["label"] if label >= 0)
    size = sum(shard.bytes for shard in manifest.shards)
    frames = sum(columns["frames"])
    in_segments = manifest.encoder.segment_seconds > 0
    unit = "segment" if in_segments else "video"
    first = [key for key in columns["key"] if key.endswith(_FIRST_SEGMENT)]
    return {
        "dataset": manifest.dataset,
        "split": manifest.split,
        "samples": manifest.samples,
        "videos": len(first) if in_segments else manifest.samples,
        "labelled": sum(labels.values()),
        "quarantined": _quarantined(folder),
        "shards": len(manifest.shards),
        "bytes": size,
        "frames": frames,
        "bytes_per_frame": round(size / max(1, frames)),
        f"frames_per_{unit}": _spread(columns["frames"]),
        f"seconds_per_{unit}": _spread(seconds),
        "fps": _spread([fps for fps in columns["fps"] if fps > _SMALLEST_FPS]),
        "short_side": _spread(list(map(min, columns["height"], columns["width"]))),
        "hours": round(sum(seconds) / 3600, 4),
        "classes": {name: labels[label] for label, name in enumerate(manifest.class_names)},
    }


def _quarantined(folder: Path) -> dict[str, int]:
    try:
        lines = read_quarantine(folder).splitlines()
        return dict(Counter(parse_json(line, QuarantineRow).reason for line in lines))
    except InvalidJsonError as error:
        raise UserError(f"{folder / QUARANTINE} is damaged ({error}): run make_shards again to write it") from error


def _spread(values: Sequence[float]) -> list[float]:
    """Return the smallest value, the median and the largest value."""
    return [round(value, 3) for value in (min(values), median(values), max(values))] if values else []


def print_tables(figures: dict[str, Any], folder: Path, most_classes: int) -> None:
    """Print the statistics as tables. Classes are sorted by size, with a bar each."""
    table = Table("", "smallest", "median", "largest", title=f"{figures['dataset']} {figures['split']}: {folder}")
    unit = "segment" if "frames_per_segment" in figures else "video"
    samples = f"{figures['samples']} videos"
    if unit == "segment":
        samples = f"{figures['samples']} segments of {figures['videos']} videos"
    for name in (f"frames_per_{unit}", f"seconds_per_{unit}", "fps", "short_side"):
        table.add_row(name.replace("_", " "), *([f"{value:g}" for value in figures[name]] or ["unknown"] * 3))
    show(table)
    quarantined = ", ".join(f"{count} {reason}" for reason, count in figures["quarantined"].items()) or "none"
    say(
        f"{samples} ({figures['labelled']} labelled), {figures['frames']} frames, "
        f"{figures['hours']:.2f} hours, {decimal(figures['bytes'])} in {figures['shards']} shards, "
        f"{decimal(figures['bytes_per_frame'])} a frame; quarantined: {quarantined}"
    )
    classes = sorted(figures["classes"].items(), key=lambda item: -item[1])
    if not classes:
        return
    largest = max(1, classes[0][1])
    bars = Table("class", f"{unit}s", "", title=f"{len(classes)} classes")
    for name, count in classes[:most_classes]:
        bars.add_row(name, str(count), draw_bar(round(40 * count / largest)))
    show(bars)
    if len(classes) > most_classes:
        say(f"and {len(classes) - most_classes} more classes, the smallest with {classes[-1][1]} {unit}s")


def draw_classes(figures: dict[str, Any], path: Path) -> None:
    """Draw a bar chart of the number of videos of each class."""
    from matplotlib.figure import Figure  # slow to import (half a second)

    bars = class_bars(figures["classes"])
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(range(len(bars)), [count for _, count in bars])
    axes.set_yticks(range(len(bars)), [picture_text(name) for name, _ in bars])
    axes.bar_label(drawn, fmt="{:g}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="videos", title=picture_text(f"{figures['dataset']} {figures['split']}"))
    metadata = {"Software" if path.suffix == ".png" else "Creator": SIGNATURE}
    try:
        with atomic_path(path, durable=False) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
    except OSError as error:
        raise UserError(f"--picture {path} cannot be written ({error}): choose another file") from error


def class_bars(classes: Mapping[str, int]) -> list[tuple[str, float]]:
    """Return the name and the size of each bar, the largest class first; the rest of many classes is one bar."""
    counts: list[tuple[str, float]] = sorted(classes.items(), key=lambda entry: -entry[1])
    named, rest = counts[:NAMED_CLASSES], [count for _, count in counts[NAMED_CLASSES:]]
    return [*named, (f"each of the other {len(rest)} (median)", median(rest))] if rest else named


COMMAND = Command(add_arguments, run, description=__doc__ or "", epilog=_EXAMPLES)

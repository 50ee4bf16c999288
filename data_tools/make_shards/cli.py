"""Command line of make_shards."""

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.progress import Progress, TaskID

from data_tools.annotations import READERS, Split, read_split
from data_tools.decode import FrameSettings, QuarantineReason
from data_tools.make_shards import webdataset
from data_tools.make_shards.presets import DEFAULT, PRESETS, describe
from data_tools.make_shards.records import Counts, load_finished, load_records
from data_tools.make_shards.retry import begin_retry, end_retry
from data_tools.make_shards.shard_plan import ShardPlan, lock_new_output, lock_output, make_plan, write_or_check_plan
from data_tools.make_shards.write import finish, write_shards
from data_tools.quarantine import QUARANTINE
from data_tools.reporting import name_file, progress_bar, refuse_inside
from motionmae.commands.app import Command, add_json_argument
from motionmae.data.shards.manifest import MANIFEST, Manifest
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.screen import TaskText
from motionmae.text import printable, say

_DESCRIPTION = """\
Decode the videos of one split of a data set into WebDataset shards of JPEG frames.

Every video of the split is stored in a shard, or is listed in OUT/quarantine.jsonl with a reason. The bytes depend only
on the list of videos, the settings and the library versions. Repeat the command to continue a stopped run; a finished
run does nothing."""

_EXAMPLES = """\
examples:
  render a small data set and make shards of its training videos:
    motionmae shards toy --out data/toy_videos
    motionmae shards make folder --videos data/toy_videos --split train --out data/toy/train
  Kinetics-400, with clips anywhere below one folder and csv files in another:
    motionmae shards make k400 --videos K400 --annotations K400/annotations --split train --out data/k400/train
  Something-Something V2, UCF101, HMDB51:
    motionmae shards make ssv2 --videos SSV2 --annotations SSV2/labels --split train --out data/ssv2/train
    motionmae shards make ucf101 --videos UCF-101 --annotations ucfTrainTestlist --split train1 --out data/ucf
    motionmae shards make hmdb51 --videos HMDB51 --annotations splits --split test1 --out data/hmdb
  a large set on 16 machines with a shared disk: parts 0 to 15, then the manifest (on Slurm: motionmae shards submit):
    motionmae shards make ssv2 --videos SSV2 --annotations SSV2/labels --split train --out data/ssv2 --part 0/16
    motionmae shards make ssv2 --videos SSV2 --annotations SSV2/labels --split train --out data/ssv2
  Kinetics-600 and 700, Moments, Diving48, Jester, ActivityNet, HACS, EPIC-KITCHENS: the table in docs/data/data_sets.md
  long videos, in segments of ten seconds that are samples of their own (docs/data/long_videos.md):
    motionmae shards make folder --videos EGO4D --out data/ego4d --segment-seconds 10
  pictures beside videos, each a clip without motion (docs/data/shards.md):
    motionmae shards make folder --videos PICTURES --out data/pictures --images
  tars of videos, as img2dataset and video2dataset write them (docs/data/data_sets.md):
    motionmae shards make webdataset --shards 'WEBVID/{00000..00099}.tar' --out data/webvid
  any folder: with train.csv / val.csv ("path label" lines), with class folders, or flat:
    motionmae shards make folder --videos VIDEOS --out data/mine

exit status: 0 shards are made (some videos may be quarantined), 2 wrong input or no video could be stored,
3 with --strict: some videos are quarantined, 130 stopped by Ctrl-C."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    known = sorted([*READERS, webdataset.NAME])
    add("dataset", choices=known, metavar="DATASET", help=f"one of {', '.join(known)}")
    add("--videos", type=Path, help="folder of the videos, in any layout")
    add("--shards", metavar="TARS", help="webdataset: a folder of tars, or a pattern such as 's3://B/{000..099}.tar'")
    labels = "webdataset: cls, txt, json:KEY or none (default: .cls, else a usual key of .json)"
    add("--label-from", type=_label_source, metavar="MEMBER", help=labels)
    add("--annotations", type=Path, help="folder or file of the official annotations (default: --videos)")
    add("--split", help="train, val, test; train1 ... test3 for ucf101 and hmdb51; folder: default all splits")
    add("--out", type=Path, required=True, help="folder for the shards; created if needed")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="decoding processes (default: one per core)")
    add("--part", type=_part, metavar="I/N", help="write every Nth shard from the Ith (from 0) on, without a manifest")
    frames = FrameSettings()
    frame = parser.add_argument_group("stored frames").add_argument
    frame("--preset", choices=PRESETS, default=DEFAULT, help="values of three options (%(default)s; see below)")
    frame("--short-side", type=int, help="pixels, overrides the preset; smaller videos keep theirs")
    frame("--quality", type=int, help="JPEG quality, overrides the preset")
    frame("--chroma", choices=("420", "444"), help="chroma subsampling, overrides the preset; 444 has none")
    frame("--raw", action="store_true", help="store pixels: 13 times the bytes, half the CPU to load")
    frame("--stride", type=int, default=frames.stride, help="store one of this many frames (%(default)s: all)")
    frame("--clips", type=int, default=frames.clips, help="stored windows of each video (%(default)s: the whole video)")
    frame("--window", type=int, default=frames.window, help="source frames of a window (%(default)s)")
    frame("--segment-seconds", type=float, default=0, metavar="S", help="cut videos into samples of S seconds (whole)")
    frame("--images", action="store_true", help="folder: also store pictures, as samples of one frame")
    frame("--flow", type=int, default=frames.flow, metavar="FRAMES", help="distance of stored optical flow (none)")
    frame("--samples-per-shard", type=int, help="videos or segments per shard (64, or fewer videos to get 16 shards)")
    frame("--seed", type=int, default=0, help="seed of the order of videos (%(default)s)")
    other = parser.add_argument_group("failures and output").add_argument
    other("--timeout", type=float, default=60, help="seconds without a frame that quarantine a video (%(default)g)")
    other("--retry", action="store_true", help="try quarantined videos again; stored samples stay")
    other("--strict", action="store_true", help="exit with status 3 if a video is quarantined")
    add_json_argument(parser, "videos", "quarantined", "seconds", content="figures of the summary")


def _label_source(text: str) -> str:
    if text not in ("cls", "txt", "none") and not (text.startswith("json:") and text[5:]):
        raise argparse.ArgumentTypeError(f"{text} is not cls, txt, json:KEY or none")
    return text


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not a part: the parts of 16 are 0/16 to 15/16")
    return int(number), int(parts)


@name_file()
def run(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1 or arguments.timeout < 1:
        raise UserError("--workers and --timeout must be at least 1")
    frames = FrameSettings(**{item.name: _value(arguments, item.name) for item in fields(FrameSettings)})
    dataset, out = arguments.dataset, arguments.out
    refuse_inside(out, {"--videos": arguments.videos})
    try:
        split = _read_split(arguments)
        plan = make_plan(dataset, split, frames, arguments.seed, arguments.samples_per_shard)
        write_or_check_plan(plan, out)
        return _make(plan, arguments)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped: repeat the command to continue; finished shards stay in {out}") from None


def _read_split(arguments: argparse.Namespace) -> Split:
    dataset, videos, out = arguments.dataset, arguments.videos, arguments.out
    if dataset != webdataset.NAME:
        if not videos or arguments.shards or arguments.label_from:
            raise UserError(f"{dataset} reads a folder: give --videos, without --shards and --label-from")
        return read_split(dataset, videos, arguments.annotations, arguments.split, out, arguments.images)
    if not arguments.shards or videos or arguments.annotations or arguments.part or arguments.images:
        refused = "--videos, --annotations, --images and --part"
        raise UserError(f"webdataset reads tars: give --shards 'TARS', without {refused}")
    tars = webdataset.expand_shards(arguments.shards)
    with lock_new_output(out), progress_bar(TaskText("details")) as bar:
        task = bar.add_task("unpacking tars", total=len(tars), details="")

        def show(done: int, count: int) -> None:
            bar.update(task, completed=done, details=f"{count} videos")

        return webdataset.read_tars(arguments.shards, out, arguments.label_from or "", arguments.split or "all", show)


def _value(arguments: argparse.Namespace, name: str) -> Any:
    """Return the value of an option, or that of the preset if the option was not given."""
    given = getattr(arguments, name)
    return getattr(PRESETS[arguments.preset], name) if given is None else given


def _make(plan: ShardPlan, arguments: argparse.Namespace) -> int:
    """Write all shards and the manifest, or with --part only the shards of the part; return the exit status."""
    out, part = arguments.out, arguments.part
    planned = plan.part(*part) if part else plan
    name = f"{plan.split.name} {part[0]}/{part[1]}" if part else plan.split.name
    started = time.monotonic()
    with lock_output(out, part):
        records = load_records(planned, out)
        if arguments.retry:
            count = begin_retry(planned, out, records, part)
            again = "a stopped retry continues" if count is None else f"{count} shards lack a video and are made again"
            say(f"retry: {again}; their stored samples are kept")
        finished = None if part else load_finished(plan, out, records)
        with progress_bar(TaskText("details")) as bar:
            show = _Display(bar, bar.add_task(name, total=planned.num_videos, details="")).show
            total = write_shards(planned, out, records, arguments.workers, arguments.timeout, show, arguments.retry)
        manifest = None if part else finished or finish(plan, out, total)
        end_retry(out, part)
        if plan.dataset == webdataset.NAME:
            webdataset.forget_stored(out, [row["path"] for row in total.quarantine])
    seconds = time.monotonic() - started
    if finished:
        say(f"{out} is complete: {_describe(finished, total)}; nothing to do")
    else:
        lines = _summary(manifest, total, out, seconds) if manifest else _part_summary(plan, part, total, seconds)
        for line in [*lines, *_remarks(plan.split, total)]:
            _say(line)
    if arguments.json:
        write_json(arguments.json, _figures(total, len(manifest.shards if manifest else planned.shards), seconds))
    if manifest and not manifest.samples:
        raise UserError(f"none of the {plan.num_videos} videos could be stored: see {out / QUARANTINE}")
    return 3 if arguments.strict and total.quarantine else 0


class _Display:
    """Progress bar of a run. A note tells the first video that is too long at once, because all videos may be."""

    def __init__(self, bar: Progress, task: TaskID):
        self._bar, self._task = bar, task
        self._rows = 0  # rows of the quarantine that were searched
        self._has_told = False

    def show(self, counts: Counts) -> None:
        new = counts.quarantine[self._rows :]
        self._rows += len(new)
        long = next((row for row in new if row["reason"] == QuarantineReason.TOO_LONG), None)
        if long and not self._has_told:
            self._has_told = True
            say(f"note: {long['path']} is too long: {long['error']}; the run goes on", file=sys.stderr)
        speed = self._bar.tasks[self._task].speed
        details = [f"{speed:.1f} videos/s"] if speed else []
        details.append(decimal(counts.bytes))
        if counts.quarantine:
            details.append(f"{len(counts.quarantine)} quarantined")
        self._bar.update(self._task, completed=counts.videos, details="  ".join(details))


def _stored(total: Counts) -> str:
    videos = f"{total.stored} videos"
    return videos if total.samples == total.stored else f"{total.samples} segments of {videos}"


def _describe(manifest: Manifest, total: Counts) -> str:
    return f"{_stored(total)} in {len(manifest.shards)} shards, {manifest.quarantined} quarantined"


def _part_summary(plan: ShardPlan, part: tuple[int, int], total: Counts, seconds: float) -> list[str]:
    return [
        f"part {part[0]}/{part[1]}: {_stored(total)} in {len(plan.part(*part).shards)} of {len(plan.shards)} shards, "
        f"{len(total.quarantine)} quarantined; {total.frames} frames, {decimal(total.bytes)}, {seconds:.1f} s",
        "when all parts are made, run the same command without --part",
    ]


def _summary(manifest: Manifest, total: Counts, out: Path, seconds: float) -> list[str]:
    lines = [
        f"{manifest.dataset} {manifest.split}: {_describe(manifest, total)}; {total.frames} frames, "
        f"{decimal(total.bytes)}, {seconds:.1f} s",
        f"shards:       {out}",
    ]
    if total.quarantine:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(total.reasons.items()))
        lines.append(f"quarantined:  {reasons}: {out / QUARANTINE}")
    return lines


def _remarks(split: Split, total: Counts) -> list[str]:
    """Return what a user should know about single videos."""
    lines = []
    if total.kept:
        reason = "their videos are gone or would give no better samples"
        lines.append(f"kept:         {_names(total.kept)}, as stored before; {reason}")
    if total.set_aside:
        lines.append(f"set aside:    {_names(total.set_aside)}, damaged shards with videos that are gone")
    if total.substituted:
        lines.append(f"substituted:  {_names(total.substituted)}, which cannot be decoded")
    if total.damaged:
        lines.append(f"damaged:      {_names(total.damaged)}, stored without their damaged packets")
    if total.matrices:
        tags = ", ".join(sorted({tag for pairs in total.matrices.values() for tag in pairs}))
        lines.append(f"matrices:     {_names(list(total.matrices))}, decoded in spite of the tag {tags} ({MANIFEST})")
    if split.skipped:
        lines.append(f"skipped:      {_names(split.skipped)}, not videos")
    return [*lines, *(f"note:         {note}" for note in split.notes)]


def _figures(total: Counts, shards: int, seconds: float) -> dict[str, Any]:
    """Return the content of the file of --json."""
    return {
        "videos": total.videos,
        "samples": total.samples,
        "quarantined": dict(total.reasons),
        "shards": shards,
        "frames": total.frames,
        "bytes": total.bytes,
        "seconds": round(seconds, 3),
    }


def _say(line: str) -> None:
    wrapper = textwrap.TextWrapper(118, subsequent_indent=" " * 14, break_on_hyphens=False, break_long_words=False)
    for part in wrapper.wrap(printable(line)):
        say(part)


def _names(paths: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(sorted(paths)[:limit])
    return shown if len(paths) <= limit else f"{shown} and {len(paths) - limit} more"


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=f"{describe()}\n\n{_EXAMPLES}")

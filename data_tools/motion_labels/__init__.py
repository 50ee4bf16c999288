"""Make labelled samples whose classes differ only in the order of their frames, from shards of any videos.

Every video gives one sample of each class, whose frames are copied as they are stored. In the tasks ``arrow`` and
``order`` both samples have the same frames, so a single frame tells nothing about the class. In ``speed`` the frames of
the ends of a video are in one class only.
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.reporting import damage_as_user_error, refuse_inside
from motionmae.commands.app import Command
from motionmae.data.open_shards import open_reader
from motionmae.data.rng import keyed_bits
from motionmae.data.shards.format import ShardEntry, ShardWriter
from motionmae.data.shards.manifest import Manifest, check_whole, write_manifest
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError
from motionmae.text import say

Order = list[int]
"""Numbers of the stored frames of a new sample."""

_PARTS = 4  # of a shuffled video
_KEY = 76  # characters of an old key that fit into the new one

_DESCRIPTION = """\
Make shards whose labels only motion tells: every video of the input becomes one sample of each class, with frames in
another order or at another distance. Labels of the input are not used. Make training and test samples of
separate folders, so that no video is in both.

tasks:
  arrow   forward, backward: the arrow of time
  speed   normal, double: the middle half of the frames, or every second frame; both have the same number of frames
  order   in_order, shuffled: four equal parts of the video in their order, or in another one, drawn for each video"""

_EXAMPLES = """\
examples:
  motionmae shards make folder --videos VIDEOS --split train --out data/mine/train
  motionmae shards motion-labels data/mine/train --task arrow --out data/mine/train_arrow
  motionmae shards motion-labels data/mine/train --task order --seed 1 --out data/mine/train_order"""


@dataclass(frozen=True)
class Task:
    """A question about the order of frames."""

    classes: tuple[str, str]
    least: int  # stored frames that a video must have


TASKS = {
    "arrow": Task(("forward", "backward"), 2),
    "speed": Task(("normal", "double"), 4),
    "order": Task(("in_order", "shuffled"), 2 * _PARTS),
}


def orders_of(task: str, frames: int, seed: int, source: str) -> tuple[Order, Order]:
    """Return the frames of the two samples of a video, by class; ``seed`` and ``source`` determine the shuffle."""
    everything = list(range(frames))
    if task == "arrow":
        return everything, everything[::-1]
    if task == "speed":
        every_second = everything[: frames // 2 * 2 : 2]
        start = (frames - len(every_second)) // 2
        return everything[start : start + len(every_second)], every_second
    parts = [part.tolist() for part in np.array_split(everything, _PARTS)]
    random = np.random.default_rng(keyed_bits("motion-labels", seed, _number(source), 0))
    order = random.permutation(_PARTS)
    while (order == np.arange(_PARTS)).all():
        order = random.permutation(_PARTS)
    return everything, [frame for part in order for frame in parts[part]]


def _number(source: str) -> int:
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:7])


def make_motion_labels(shards: Path, out: Path, task: str, seed: int = 0) -> tuple[Manifest, int]:
    """Write the samples of a task to ``out``; return the manifest and the number of videos that are too short.

    Raises:
        CorruptSample: a sample of ``shards`` is damaged.
        UserError: ``shards`` holds parts of videos or only short videos, or ``out`` holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: choose a new folder, or remove what a stopped run left")
    reader = open_reader(shards)
    try:
        check_whole(reader.manifest, shards, "motion-labels")
        out.mkdir(parents=True, exist_ok=True)
        entries: list[ShardEntry] = []
        short = first = 0
        for old in reader.manifest.shards:
            samples = range(first, first + old.samples)
            first += old.samples
            long_enough = [sample for sample in samples if reader.read_meta(sample).frames >= TASKS[task].least]
            short += old.samples - len(long_enough)
            if long_enough:
                path = out / f"{task}-{len(entries):06d}.tar"
                entries.append(_write(reader, long_enough, path, task, seed))
        if not entries:
            raise UserError(f"no video of {shards} has the {TASKS[task].least} frames that --task {task} needs")
        manifest = replace(
            reader.manifest,
            dataset=f"{reader.manifest.dataset}-{task}",
            class_names=TASKS[task].classes,
            encoder=replace(reader.manifest.encoder, flow_distance=0),
            shards=tuple(entries),
            quarantined=0,
        )
        write_manifest(out, manifest)
        return manifest, short
    finally:
        reader.close()


def _write(reader: ShardReader, samples: Sequence[int], path: Path, task: str, seed: int) -> ShardEntry:
    with ShardWriter(path, reader.manifest.encoder.encoding) as writer:
        for sample in samples:
            for key, frames, facts in _new_samples(reader, sample, task, seed):
                writer.write(key, frames, facts)
    assert writer.entry is not None
    return writer.entry


def _new_samples(
    reader: ShardReader, sample: int, task: str, seed: int
) -> Iterator[tuple[str, list[bytes], dict[str, Any]]]:
    meta, facts = reader.read_meta(sample), reader.read_json(sample)
    orders = orders_of(task, meta.frames, seed, facts["source"])
    for label, (name, order) in enumerate(zip(TASKS[task].classes, orders, strict=True)):
        frames = [bytes(frame) for frame in reader.read_frames(sample, order)]
        new = {
            "label": label,
            "class_name": name,
            "source": facts["source"],
            "fps": meta.fps,
            "frames": len(order),
            "stride": meta.stride,
            "height": meta.height,
            "width": meta.width,
            "times": facts["times"][: len(order)],  # as a player would show them
            "original_frames": order,
        }
        yield f"{meta.key[:_KEY]}_{label}", frames, new


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards of whole videos")
    parser.add_argument("--task", required=True, choices=TASKS, help="what distinguishes the classes")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffled orders (default: 0)")


@damage_as_user_error()
def run(arguments: argparse.Namespace) -> int:
    refuse_inside(arguments.out, {"the input": arguments.shards})
    try:
        manifest, short = make_motion_labels(arguments.shards, arguments.out, arguments.task, arguments.seed)
    except OSError as error:
        raise UserError(f"{arguments.out} cannot be written ({error}): choose another --out, or free space") from error
    left_out = f"; {short} videos are too short" if short else ""
    say(f"{arguments.out}: {manifest.samples} samples, {' and '.join(manifest.class_names)}{left_out}")
    return 0


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EXAMPLES)

"""Data of the experiment: rendered videos whose classes differ only in motion, and their shards."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from benchmarks.experiments.evidence.pool import ROOT
from motionmae.errors import UserError
from motionmae.files import write_atomically

SIZE, SHORT_SIDE = 64, 48
"""Short side of a video (approximate) and of a stored frame (at most), in pixels."""
SHAPE = ("--square", "--shake", "0.2")
"""A square clip sees all of a square video. The default shake would move the picture more than the object moves."""
SEED = 0
SPLITS = ("train", "train10", "val")


def make_data(folder: Path, train: int, val: int) -> None:
    """Render and shard the videos, and shard a tenth of the training videos separately. Existing data is kept.

    Raises:
        UserError: a command fails, after its own message.
    """
    videos = folder / "videos"
    counts = ("--train", str(train), "--val", str(val))
    _run("data_tools/make_toy_dataset", "--out", str(videos), *counts, "--size", str(SIZE), *SHAPE, "--seed", str(SEED))
    lines = (videos / "train.csv").read_text().splitlines(keepends=True)
    write_atomically(videos / "train10.csv", "".join(a_tenth(lines)).encode())
    for split in SPLITS:
        argv = ("--videos", str(videos), "--split", split, "--out", str(folder / split))
        _run("data_tools/make_shards", "folder", *argv, "--short-side", str(SHORT_SIDE))


def describe(train: int, val: int) -> str:
    """Describe the videos. Results are comparable only if their descriptions are the same."""
    shape = " ".join(SHAPE)
    return f"{train} + {val} videos --size {SIZE} {shape} --seed {SEED} --short-side {SHORT_SIDE}"


def a_tenth(lines: list[str]) -> list[str]:
    """Return the first tenth of the lines ("path label") of each class, rounded, but at least one line."""
    totals, numbers = Counter(map(_label, lines)), Counter[str]()
    kept = []
    for line in lines:
        numbers[_label(line)] += 1
        if numbers[_label(line)] <= max(1, round(totals[_label(line)] / 10)):
            kept.append(line)
    return kept


def _label(line: str) -> str:
    return line.split()[-1]


def _run(*argv: str) -> None:
    if subprocess.run([sys.executable, *argv], cwd=ROOT, check=False).returncode:
        raise UserError(f"making the data failed: see the message of {argv[0]} above")

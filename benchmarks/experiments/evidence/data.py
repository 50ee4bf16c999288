"""The data of the experiment: rendered videos whose classes differ in motion only, and shards of them."""

import subprocess
import sys
from pathlib import Path

from benchmarks.experiments.evidence.pool import ROOT
from motionmae.errors import UserError
from motionmae.files import write_atomically

SIZE, SHORT_SIDE = 64, 48
"""Pixels of a video's short side, about; and of a stored frame's, at most."""
SHAPE = ("--square", "--shake", "0.2")
"""A square clip sees all of a square video; the usual shake moves the picture more than a class moves its object."""
SEED = 0
SPLITS = ("train", "train10", "val")


def make_data(folder: Path, train: int, val: int) -> None:
    """Render videos and shard them, a tenth of those for training also apart, unless all is there.

    Raises:
        UserError: a step failed, and has said why.
    """
    videos = folder / "videos"
    counts = ("--train", str(train), "--val", str(val))
    _run("data_tools/make_toy_dataset", "--out", str(videos), *counts, "--size", str(SIZE), *SHAPE, "--seed", str(SEED))
    lines = (videos / "train.csv").read_text().splitlines(keepends=True)
    write_atomically(videos / "train10.csv", "".join(a_tenth(lines)).encode())
    for split in SPLITS:
        words = ("--videos", str(videos), "--split", split, "--out", str(folder / split))
        _run("data_tools/make_shards", "folder", *words, "--short-side", str(SHORT_SIDE))


def describe(train: int, val: int) -> str:
    """What tells these videos from others; figures of two experiments compare only where it is the same."""
    words = (f"{train} + {val} videos", f"--size {SIZE}", *SHAPE, f"--seed {SEED}", f"--short-side {SHORT_SIDE}")
    return " ".join(words)


def a_tenth(lines: list[str]) -> list[str]:
    """The first tenth, rounded, of each class's lines ("path label"), one at least: all are drawn alike."""
    numbers: dict[str, int] = {}
    totals: dict[str, int] = {}
    for line in lines:
        totals[_label(line)] = totals.get(_label(line), 0) + 1
    kept = []
    for line in lines:
        number = numbers[_label(line)] = numbers.get(_label(line), 0) + 1
        if number <= max(1, round(totals[_label(line)] / 10)):
            kept.append(line)
    return kept


def _label(line: str) -> str:
    return line.split()[-1]


def _run(*words: str) -> None:
    if subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode:
        raise UserError(f"the data could not be made: see what {words[0]} said above")

"""The command line of benchmarks/experiments/real_video."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.experiments.real_video.encoders import cell_features
from benchmarks.experiments.real_video.hand_made import features_of
from benchmarks.experiments.real_video.readout import (
    DECAYS,
    NEIGHBOURS,
    SPLITS,
    Floats,
    Folds,
    Part,
    accuracy,
    logistic_regression,
    most_frequent,
    nearest_neighbours,
)
from motionmae.commands.app import run
from motionmae.data.held_out.shards import match_classes
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.text import printable

_DESCRIPTION = """\
Classify real videos by hand-made features and by frozen encoders, with the same classifiers, splits and seeds.

Rows: the most frequent class; appearance (gradients and colours of four frames), motion (histograms of normal flow),
both; the frozen tokens of each --encoder, pooled in cells of time and place. Columns: logistic regression and nearest
neighbours. Weight decay and number of neighbours are chosen on a quarter of the training videos, whole groups together,
which a seed draws; the classifier is then trained on all training videos. Test videos choose nothing.

--split leave-one-out and halves put the videos of both folders together, and divide them by --group: each group is
tested once after training on all others; a seed draws half of the groups for the test."""

_EXAMPLES = """\
examples (REAL stands for `python -m benchmarks.experiments.real_video`):
  REAL --train data/ut/train --test data/ut/val
  REAL --train data/jhmdb/fold1 --test data/jhmdb/fold2 --group '(.*?)_[a-z_]+_[ufhl]_[nc]m_np'
  REAL --train data/ut/train --test data/ut/val --group 'segmented_set\\d/\\d+_(\\d+)_' --split leave-one-out
  REAL --train data/ut/train --test data/ut/val --encoder both=runs/both scratch=runs/untrained --mirror"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(lambda: _run(parser().parse_args(sys.argv[1:] if argv is None else argv)))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.real_video",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--train", required=True, help="folder of labelled shards")
    add("--test", required=True, help="folder of labelled shards with the same classes")
    add("--encoder", nargs="+", default=[], metavar="NAME=WEIGHTS", help="frozen encoders, each with a name")
    add("--mirror", action="store_true", help="train on the mirror images of the training videos, too (all rows)")
    add("--seed", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds (0 1 2)")
    add("--split", choices=SPLITS, default="given", help="which videos are for the test (given: those of --test)")
    add("--group", type=re.compile, metavar="REGEX", help="its first group names the recording of a video's path")
    add("--json", type=Path, metavar="FILE", help="file for all figures")
    return made


def _run(options: argparse.Namespace) -> int:
    readers = [open_reader(shards) for shards in (options.train, options.test)]
    classes = readers[0].manifest.class_names
    logits = match_classes(classes, readers[1].manifest.class_names, options.test)
    numbers = [np.arange(len(classes)), logits]
    parts = [_described(reader, one, options.group) for reader, one in zip(readers, numbers, strict=True)]
    rows: list[dict[str, Any]] = []
    hand_made = [_hand_made(reader, options.mirror) for reader in readers]
    for name, columns in {"appearance": [0], "motion": [1], "appearance and motion": [0, 1]}.items():
        rows.append(_row(name, parts, [_columns(features, columns) for features in hand_made], options))
    for named in options.encoder:
        name, is_named, weights = named.partition("=")
        if not is_named:
            raise UserError(f"--encoder {named} has no name: write NAME={named}")
        rows.append(_row(name, parts, cell_features(weights, readers, options.mirror), options))
    train, test = parts
    split = SPLITS[options.split]
    baseline = mean(accuracy(most_frequent, (0,), split(train, test, seed), seed)[0] for seed in options.seed)
    print(f"{_sizes(split(train, test, options.seed[0]))}, {len(classes)} classes\n")
    print(as_markdown(baseline, rows))
    if options.json:
        report = {
            "train": readers[0].manifest.fingerprint,
            "test": readers[1].manifest.fingerprint,
            "split": options.split,
            "mirror": options.mirror,
            "seeds": options.seed,
            "most_frequent": baseline,
            "rows": rows,
        }
        write_json(options.json, report)
    return 0


def _described(reader: ShardReader, numbers: np.ndarray, pattern: re.Pattern[str] | None) -> Part:
    """Return labels and groups of all samples, without features."""
    labels, groups = [], []
    for sample in range(reader.manifest.samples):
        label = reader.read_meta(sample).label
        if label < 0:
            raise UserError(f"{reader.folder} has a video without a class: give shards of a split with labels")
        labels.append(int(numbers[label]))
        groups.append(group_of(str(reader.read_json(sample)["source"]), pattern))
    return Part(np.empty((len(labels), 0), np.float32), np.array(labels, np.int64), groups)


def group_of(source: str, pattern: re.Pattern[str] | None) -> str:
    """Return the first group of the pattern in the path of a video; the path itself without a match."""
    found = pattern.search(source) if pattern else None
    return found[1] if found and found.groups() else source


def _hand_made(reader: ShardReader, mirror: bool) -> list[tuple[Floats, Floats]]:
    """Return (appearance, motion) of all samples, and of their mirror images if they are asked for."""
    found = []
    for mirrored in (False, True) if mirror else (False,):
        values = [features_of(reader, sample, mirrored) for sample in range(reader.manifest.samples)]
        found.append((np.stack([one for one, _ in values]), np.stack([two for _, two in values])))
    return found


def _columns(features: list[tuple[Floats, Floats]], columns: Sequence[int]) -> tuple[Floats, ...]:
    return tuple(np.concatenate([kinds[column] for column in columns], axis=1) for kinds in features)


def _row(
    name: str, parts: Sequence[Part], features: Sequence[tuple[Floats, ...]], options: argparse.Namespace
) -> dict[str, Any]:
    """Classify by the features of the videos of both folders, each followed by those of their mirror images."""
    train, test = (
        Part(values, part.labels, part.groups, *mirrored)
        for (values, *mirrored), part in zip(features, parts, strict=True)
    )
    row: dict[str, Any] = {"features": name}
    methods = {"logistic_regression": (logistic_regression, DECAYS), "neighbours": (nearest_neighbours, NEIGHBOURS)}
    split = SPLITS[options.split]
    for title, (classify, settings) in methods.items():
        found = [accuracy(classify, settings, split(train, test, seed), seed) for seed in options.seed]
        row[title] = {"top1": [top1 for top1, _ in found], "settings": [chosen for _, chosen in found]}
    return row


def _sizes(folds: Folds) -> str:
    if len(folds) == 1:
        ((train, test),) = folds
        return f"{len(train.labels)} training and {len(test.labels)} test videos"
    return f"{sum(len(test.labels) for _, test in folds)} videos, each tested once in {len(folds)} folds"


def as_markdown(baseline: float, rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of top-1 in percent: mean ± standard deviation over the seeds, and each seed."""
    lines = ["| features | logistic regression | nearest neighbours |", "|---|---|---|"]
    lines.append(f"| none: the most frequent class | {baseline:.1f} | {baseline:.1f} |")
    for row in rows:
        cells = [_figures(row[title]["top1"]) for title in ("logistic_regression", "neighbours")]
        lines.append(f"| {printable(row['features'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"

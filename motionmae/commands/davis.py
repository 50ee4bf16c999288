"""`motionmae davis`: segment video objects by label propagation, and score the masks."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from motionmae.commands.app import Command, add_json_argument, add_weights_arguments
from motionmae.errors import UserError
from motionmae.evaluation import ADAPTERS
from motionmae.files import write_json
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.evaluation.davis.dataset import Scores

_DESCRIPTION = """\
Propagate the first mask of every DAVIS-2017 sequence through the video by nearest neighbours in a frozen encoder's
features, write palette PNGs, and score them as the official evaluator does. Finished sequences are reused if encoder,
protocol and data set are the same. Sequences that annotate only the first frame get masks but no score."""

_EPILOG = """\
examples:
  motionmae davis runs/vitb_k400 --davis DAVIS --out results --json scores.json
  motionmae davis runs/vitb_k400 --davis DAVIS --protocol dino --adapter sliding --overlay mp4
  motionmae davis videomae-base --davis DAVIS
  motionmae davis --davis DAVIS --features pixels
  motionmae davis --davis DAVIS --evaluate-only results --json scores.json --overlay png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser, "the encoder", required=False)
    parser.add_argument("--davis", type=Path, required=True, help="DAVIS folder in the official layout")
    parser.add_argument("--image-set", default="2017/val", help="list of sequences (default: 2017/val)")
    parser.add_argument(
        "--features", choices=("encoder", "random", "pixels", "repeat"), default="encoder",
        help="random: the encoder before training; baselines without weights: pixels, repeat (the first mask)",
    )  # fmt: skip
    parser.add_argument("--protocol", choices=("videowalk", "dino"), default="videowalk", help="default: videowalk")
    parser.add_argument("--adapter", choices=ADAPTERS, default="duplicate", help="default: duplicate")
    parser.add_argument(
        "--short-side", type=int, default=480, metavar="PIXELS",
        help="short side of the frames (default: 480, for cubes of 16 pixels; proportionally less for smaller cubes)",
    )  # fmt: skip
    out = "folder for the masks (default: davis/... in the run or in results/NAME, or davis_FEATURES)"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--evaluate-only", type=Path, metavar="RESULTS", help="only score the masks in this folder")
    parser.add_argument("--overlay", choices=("png", "mp4"), help="also draw the masks on the frames")
    add_json_argument(parser, "per_object", "J&F-Mean", content="scores")


def run(arguments: argparse.Namespace) -> int:
    from motionmae.evaluation.cache_key import read_cache_key
    from motionmae.evaluation.davis import dataset, run
    from motionmae.evaluation.weights_source import find_weights

    sequences = dataset.read_sequences(arguments.davis, arguments.image_set)
    unmarked = [sequence.name for sequence in sequences if not sequence.annotated]
    if unmarked and arguments.json:
        unscored = f"{len(unmarked)} of {len(sequences)} sequences lack masks of some frames ({unmarked[0]} first)"
        remedy = "leave out --json, or list the other sequences with --image-set"
        raise UserError(f"{unscored} and cannot be scored: {remedy}")
    if arguments.evaluate_only:
        results = arguments.evaluate_only
    else:
        if arguments.weights is None and arguments.features in ("encoder", "random"):
            raise UserError(f"--features {arguments.features} needs an encoder: give WEIGHTS, or use --features pixels")
        source = find_weights(arguments.weights, arguments.step, arguments.settings) if arguments.weights else None
        settings = (arguments.protocol, arguments.adapter, arguments.davis, arguments.short_side)
        extractor, key = run.open_features(arguments.features, source, *settings)
        name = "_".join([*(str(value) for value in key.settings.values() if value), key.digest])
        parent = source.results / "davis" if source else Path()
        results = arguments.out or parent / f"davis_{name}"
        run.segment(sequences, extractor, arguments.protocol, results, key)
    scores = dataset.score_folder(sequences, results) if arguments.evaluate_only or not unmarked else None
    if arguments.overlay:
        for path in run.draw_overlays(sequences, results, arguments.overlay):
            say(f"wrote {path}")
    if scores is None:
        say(f"masks: {results}")
        say(f"not scored: {len(unmarked)} of {len(sequences)} sequences lack masks of later frames")
    else:
        _report(scores, read_cache_key(results), results, arguments.json)
    return 0


def _report(scores: "Scores", key: dict[str, object] | None, results: Path, out: Path | None) -> None:
    from motionmae.evaluation.davis.metrics import global_means
    from motionmae.screen import Table, show

    means = global_means(scores)
    table = Table(title=results, title_justify="left")
    for column in ("", "J", "F"):
        table.add_column(column, justify="right" if column else "left")
    for name, score in scores.items():
        table.add_row(name, f"{score['J'].mean:.4f}", f"{score['F'].mean:.4f}")
    table.add_section()
    for what in ("Mean", "Recall", "Decay"):
        table.add_row(what, f"{means[f'J-{what}']:.4f}", f"{means[f'F-{what}']:.4f}")
    show(table, wrap=False)
    say(f"J&F-Mean {means['J&F-Mean']:.4f} over {len(scores)} objects")
    if out:
        per_object = {name: {measure: score.mean for measure, score in pair.items()} for name, pair in scores.items()}
        write_json(out, {"per_object": per_object, **means, **(key or {"settings": {}}), "masks": str(results)})


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

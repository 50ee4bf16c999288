"""``python -m motionmae davis``: video object segmentation by label propagation, and its scores."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from motionmae.errors import UserError
from motionmae.evaluation import ADAPTERS
from motionmae.files import output_file

if TYPE_CHECKING:
    from motionmae.evaluation.davis.dataset import Scores

_DESCRIPTION = """\
Propagate the first mask of every DAVIS-2017 sequence through the video by nearest neighbours in a frozen encoder's
features, write palette PNGs, and score them as the official evaluator does. Sequences whose masks are all there already
are not computed again; masks of another encoder, protocol or data set are never taken for them. Where only first masks
are annotated, masks are written and not scored."""

_EPILOG = """\
examples:
  python -m motionmae davis runs/vitb_k400 --davis DAVIS --out results --json scores.json
  python -m motionmae davis runs/vitb_k400 --davis DAVIS --protocol dino --adapter sliding --overlay mp4
  python -m motionmae davis --davis DAVIS --features pixels
  python -m motionmae davis --davis DAVIS --evaluate-only results --json scores.json --overlay png"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "davis",
        help="video object segmentation on DAVIS-2017",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="RUN", help="run folder whose encoder is used")
    parser.add_argument("--davis", type=Path, required=True, help="DAVIS folder in the official layout")
    parser.add_argument("--image-set", default="2017/val", help="list of sequences (default: 2017/val)")
    parser.add_argument(
        "--features", choices=("encoder", "random", "pixels", "repeat"), default="encoder",
        help="random: the run's encoder before training; pixels, repeat (the first mask): baselines without a run",
    )  # fmt: skip
    parser.add_argument("--protocol", choices=("videowalk", "dino"), default="videowalk", help="default: videowalk")
    parser.add_argument("--adapter", choices=ADAPTERS, default="duplicate", help="default: duplicate")
    parser.add_argument(
        "--short-side", type=int, default=480, metavar="PIXELS",
        help="what an encoder's frames are resized to (default: 480, for cells of 16 pixels); one of smaller cubes has "
        "as many cells in smaller frames",
    )  # fmt: skip
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--out", type=Path, help="folder for the masks (default: RUN/davis/..., or davis_FEATURES)")
    parser.add_argument("--evaluate-only", type=Path, metavar="RESULTS", help="only score the masks of this folder")
    parser.add_argument("--overlay", choices=("png", "mp4"), help="also draw the masks over the frames")
    parser.add_argument("--json", type=output_file, help="write scores there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Propagate, score, print, and return the exit status."""
    from motionmae.evaluation.cache_key import read_cache_key
    from motionmae.evaluation.davis import dataset, run

    sequences = dataset.read_sequences(arguments.davis, arguments.image_set)
    unmarked = [sequence.name for sequence in sequences if not sequence.annotated]
    if unmarked and arguments.json:
        raise UserError(
            f"{len(unmarked)} of {len(sequences)} sequences have no mask for every frame ({unmarked[0]} first), and "
            "without there are no scores: leave out --json, or list the others with --image-set"
        )
    if arguments.evaluate_only:
        results = arguments.evaluate_only
    else:
        if arguments.folder is None and arguments.features in ("encoder", "random"):
            raise UserError(f"--features {arguments.features} needs a RUN folder: name one, or use --features pixels")
        extractor, key = run.open_features(
            arguments.features,
            arguments.folder,
            arguments.step,
            arguments.protocol,
            arguments.adapter,
            arguments.davis,
            arguments.short_side,
        )
        name = "_".join([*(str(value) for value in key.settings.values() if value), key.digest])
        results = arguments.out or (arguments.folder / "davis" if arguments.folder else Path()) / f"davis_{name}"
        run.segment(sequences, extractor, arguments.protocol, results, key)
    scores = dataset.score_folder(sequences, results) if arguments.evaluate_only or not unmarked else None
    if arguments.overlay:
        for path in run.draw_overlays(sequences, results, arguments.overlay):
            print(f"wrote {path}")
    if scores is None:
        print(f"masks: {results}\nnot scored: {len(unmarked)} of {len(sequences)} sequences lack masks of later frames")
        return 0
    _report(scores, read_cache_key(results), results, arguments.json)
    return 0


def _report(scores: "Scores", key: dict[str, object] | None, results: Path, out: Path | None) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

    from motionmae.evaluation.davis.metrics import global_means
    from motionmae.files import write_atomically

    means = global_means(scores)
    table = Table(title=str(results), title_justify="left")
    for column in ("", "J", "F"):
        table.add_column(column, justify="right" if column else "left")
    for name, score in scores.items():
        table.add_row(name, f"{score['J'].mean:.4f}", f"{score['F'].mean:.4f}")
    table.add_section()
    for what in ("Mean", "Recall", "Decay"):
        table.add_row(what, f"{means[f'J-{what}']:.4f}", f"{means[f'F-{what}']:.4f}")
    Console(soft_wrap=True).print(table)
    print(f"J&F-Mean {means['J&F-Mean']:.4f} over {len(scores)} objects")
    if out:
        per_object = {name: {measure: score.mean for measure, score in pair.items()} for name, pair in scores.items()}
        content = {"per_object": per_object, **means, **(key or {"settings": {}}), "masks": str(results)}
        write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())

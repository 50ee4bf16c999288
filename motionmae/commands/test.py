"""`motionmae test`: measure the multi-view accuracy of a classifier."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from motionmae.commands.app import Command, add_classes_argument, add_json_argument, add_weights_arguments
from motionmae.errors import UserError
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.evaluation.multiview_test import Report

_DESCRIPTION = """\
Test a classifier on all videos of test shards. The prediction for a video is the mean of the softmax outputs
of its clips x crops views. Figures, per-class accuracy, predictions and the confusion matrix go to RUN/test/, or to
results/NAME/test/ for weights outside of a run. The same command continues an interrupted test. Under torchrun or srun
the ranks share the videos; their number does not change the result."""

_EPILOG = """\
examples:
  motionmae test runs/finetune_tiny_ut_interaction
  motionmae test finetune_tiny_ut_interaction --shards data/ut_interaction/val --clips 1 --crops 1
  motionmae test exported --shards data/ut_interaction/val
  torchrun --nproc-per-node 2 -m motionmae test finetune_tiny_ut_interaction --json figures.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser, "a classifier")
    add_classes_argument(parser)
    parser.add_argument("--shards", help="folder or URL of shards (default: test.shards of a run)")
    parser.add_argument("--clips", type=int, help="clips per video (default: test.clips of its config)")
    parser.add_argument("--crops", type=int, help="crops per clip (default: test.crops of its config)")
    add_json_argument(parser, "top1", "per_class")


def run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    import numpy as np
    from numpy.typing import NDArray

    from motionmae.config import EngineConfig, load_config
    from motionmae.data.held_out.shards import match_classes
    from motionmae.data.open_shards import open_reader
    from motionmae.data.shards.manifest import check_whole
    from motionmae.data.shards.reader import ShardReader
    from motionmae.distributed.context import rank_zero_first
    from motionmae.distributed.process_group import distributed
    from motionmae.evaluation import multiview_test
    from motionmae.evaluation.load_model import Finetuned, choose_weights, load_finetuned
    from motionmae.evaluation.weights_source import WeightsSource, run_of
    from motionmae.runs.directory import RunFolder
    from motionmae.training.validation.confusion import draw_confusion

    run = run_of(arguments.weights)
    engine = load_config(str(RunFolder(run).config)).engine if run else EngineConfig()

    def prepare(source: WeightsSource) -> tuple[Finetuned, ShardReader, NDArray[np.int64]]:
        trained = load_finetuned(source)
        flags = {key: getattr(arguments, key) for key in ("shards", "clips", "crops")}
        changes = {f"test.{key}": value for key, value in flags.items() if value is not None}
        config = trained.config.updated(changes)
        if source.run is None and not arguments.shards:
            raise UserError(f"{arguments.weights} is not a run with test shards of its own: add --shards FOLDER")
        views = config.test
        if not views.shards:
            made = "made of the test split by `motionmae shards make`"
            raise UserError(f"test.shards is empty: add --shards FOLDER, {made}")
        trained = replace(trained, config=config)
        reader = open_reader(views.shards, data=trained.config.data)
        check_whole(reader.manifest, views.shards, "a test")
        names = reader.manifest.class_names
        return trained, reader, match_classes(trained.class_names, names, views.shards)

    with distributed(engine) as rank:
        source = choose_weights(rank, arguments.weights, arguments.step, arguments.settings, arguments.classes)
        trained, reader, logits = rank_zero_first(rank, lambda: prepare(source))
        results, out = multiview_test.predict(trained, reader, rank)
        if rank.is_rank_zero:
            labels = multiview_test.labels_of(reader, results, logits)
            report, confusion = multiview_test.evaluate(trained, results, labels)
            predictions, picture, figures = (out / name for name in multiview_test.RESULT_FILES)
            multiview_test.write_predictions(predictions, trained, reader, results)
            heading = f"{trained.title}, {report.views} views: {report.top1:.1f} % top-1"
            draw_confusion(picture, confusion, trained.class_names, heading)
            of = {"step": trained.step, "shards": trained.config.test.shards}
            for path in (figures, arguments.json):
                if path:
                    multiview_test.write_report(path, report, **of, unreadable=results.unreadable)
            _print(report, results.unreadable, out)
    return 0


def _print(report: "Report", unreadable: dict[str, str], out: Path) -> None:
    from motionmae.screen import Table, show

    table = Table(show_header=False)
    table.add_row("top-1", f"{report.top1:.2f} %")
    table.add_row("top-5", f"{report.top5:.2f} %")
    table.add_row("mean of the classes", f"{report.mean_class:.2f} %")
    table.add_row("videos", f"{report.videos}, of which {report.missing} could not be read")
    table.add_row("views", f"{report.views} of {report.gflops_per_view:.4g} GFLOPs: {report.gflops:.4g} GFLOPs a video")
    table.add_row("parameters", f"{report.parameters / 1e6:.1f} M")
    for name, value in report.per_class.items() if len(report.per_class) <= 20 else ():
        table.add_row(f"  {name}", "none tested" if value is None else f"{value:.1f} %")
    show(table, wrap=False)
    for name, reason in unreadable.items():
        say(f"not read: video {name}: {reason}")
    say(f"predictions, confusion matrix, figures: {out}")


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

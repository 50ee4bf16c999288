"""Multi-view test of a classifier: average the softmax over views, compute accuracies, write result files."""

import csv
import io
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.checkpointing.load_weights import fingerprint
from motionmae.data.held_out.views import read_views
from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import ShardReader
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import FILE_NAME, CacheKey
from motionmae.evaluation.inference import FrozenModel, Results, infer, items_of
from motionmae.evaluation.load_model import Finetuned
from motionmae.files import write_atomically, write_json
from motionmae.outputs import refuse_foreign_names
from motionmae.planning.flops import count_classifier_parameters, forward_gflops

RESULT_FILES = ("predictions.csv", "confusion.png", "report.json")


@dataclass(frozen=True)
class Report:
    """Results of a test. Accuracies are percentages of the readable videos."""

    top1: float
    top5: float
    mean_class: float  # mean of the per-class top-1 accuracies, over the classes that occur
    videos: int  # number of videos of the split, including unreadable ones
    missing: int  # number of unreadable videos, which count neither as correct nor as wrong
    views: str  # clips x crops
    gflops_per_view: float  # 10^9 multiply-add operations (MACs), which papers call GFLOPs
    gflops: float  # the same for all views of a video
    parameters: int
    per_class: dict[str, float | None]  # top-1 accuracy of each class; None if no video of the class was read


def predict(trained: Finetuned, reader: ShardReader, rank: DistributedContext) -> tuple[Results, Path]:
    """Return the class probabilities of each video, float32 (classes,), and the folder of the results.

    The probabilities are the mean softmax over the views. All ranks must call this.
    """
    config, views, manifest = trained.config, trained.config.test, reader.manifest
    model = FrozenModel(trained.model, config, rank.device, views.batch_size)
    settings = {
        "clips": views.clips,
        "crops": views.crops,
        "sampling": config.data.sampling,
        "precision": model.precision,
        **config.clip.model_dump(),
    }
    key = CacheKey(fingerprint(trained.model), manifest.fingerprint, settings)
    step = "" if trained.step is None else f"step{trained.step}_"
    name = f"{step}{manifest.split}_{views.clips}x{views.crops}_{config.data.sampling}_{key.digest}"
    folder = trained.source.results / "test" / name
    parts = folder / "parts"

    def check_folder() -> None:
        if not (parts / FILE_NAME).exists():  # without this key no test has written to the folder
            refuse_foreign_names(folder, dict.fromkeys(RESULT_FILES, lambda path: False))

    run_on_rank_zero(rank, check_folder)

    def read(sample: str) -> np.ndarray:
        return read_views(reader, int(sample), config)

    def compute(clips: np.ndarray) -> np.ndarray:
        return model(clips).softmax(1).mean(0).numpy()

    results = infer(items_of(reader), read, compute, parts, key, rank, "test", config.data.threads)
    return results, folder


def labels_of(reader: ShardReader, results: Results, logits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of every video of ``results.values``. Raise UserError if a video has no class or has changed."""
    labels = []
    for name in results.values:
        try:
            meta = reader.read_meta(int(name))
        except CorruptSample as error:
            raise UserError(f"{reader.folder} has changed since its videos were read ({error}): repair it") from error
        if not 0 <= meta.label < len(logits):
            raise UserError(f"{meta.where} in {reader.folder} has no class: give shards of a split with labels")
        labels.append(int(logits[meta.label]))
    return np.array(labels, np.int64)


def evaluate(trained: Finetuned, results: Results, labels: NDArray[np.int64]) -> tuple[Report, NDArray[np.int64]]:
    """Return the report and the confusion matrix (rows: true class). Raise UserError if no video is readable."""
    if not results.values:
        raise UserError("all videos are unreadable: check the shards with `motionmae shards verify`")
    names, views = trained.class_names, trained.config.test
    probabilities = np.stack(list(results.values.values()))  # (videos, classes)
    ranking = np.argsort(-probabilities, axis=1, kind="stable")
    hits = ranking == labels[:, None]
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, ranking[:, 0]), 1)
    totals = confusion.sum(1)
    per_class = {
        name: float(100 * hit / total) if total else None
        for name, hit, total in zip(names, confusion.diagonal(), totals, strict=True)
    }
    found = [value for value in per_class.values() if value is not None]
    gflops = forward_gflops(trained.config, len(names))
    report = Report(
        top1=float(100 * hits[:, :1].any(1).mean()),
        top5=float(100 * hits[:, :5].any(1).mean()),
        mean_class=float(np.mean(found)),
        videos=len(results.values) + len(results.unreadable),
        missing=len(results.unreadable),
        views=f"{views.clips} x {views.crops}",
        gflops_per_view=gflops,
        gflops=gflops * views.clips * views.crops,
        parameters=count_classifier_parameters(trained.config, len(names)),
        per_class=per_class,
    )
    return report, confusion


def write_predictions(path: Path, trained: Finetuned, reader: ShardReader, results: Results, top: int = 5) -> None:
    """Write a CSV with one row per video: shard and key, source, true class, and the ``top`` classes with probability.

    The row of an unreadable video has the problem instead of classes.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    ranks = [f"{part}{number + 1}" for number in range(top) for part in ("class", "probability")]
    writer.writerow(["video", "source", "label", "problem", *ranks])
    for sample in range(reader.manifest.samples):
        origin, name = _origin(reader, sample), str(sample)
        if name in results.unreadable:
            writer.writerow([*origin, results.unreadable[name]])
            continue
        probabilities = results.values[name]
        best = np.argsort(-probabilities, kind="stable")[:top]
        cells = [cell for c in best for cell in (trained.class_names[c], f"{probabilities[c]:.6f}")]
        writer.writerow([*origin, "", *cells])
    write_atomically(path, text.getvalue().encode())


def _origin(reader: ShardReader, sample: int) -> list[str]:
    """Return shard and key, source, and class of a video; fields that cannot be read are empty."""
    cells = [str(sample), "", ""]
    with suppress(CorruptSample):
        cells[0] = reader.read_meta(sample).where
        facts = reader.read_json(sample)
        cells[1:] = [facts["source"], facts["class_name"]]
    return cells


def write_report(path: Path, report: Report, **more: object) -> None:
    write_json(path, {**asdict(report), **more})

"""Multi-view action recognition: softmax of each view, their mean, and what the predictions are worth."""

import csv
import io
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.manifest import Manifest
from motionmae.data.shards.reader import ShardReader
from motionmae.distributed.context import DistributedContext
from motionmae.engine.precision import resolve_precision
from motionmae.errors import UserError
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.inference import FrozenModel, Results, infer, items_of
from motionmae.evaluation.load_run import Finetuned
from motionmae.evaluation.views import read_views
from motionmae.files import atomic_path, write_atomically
from motionmae.planning.flops import count_classifier_parameters, forward_gflops


@dataclass(frozen=True)
class Report:
    """The figures of a test; shares are of the videos that could be read, in percent."""

    top1: float
    top5: float
    mean_class: float
    """Mean of the classes' own top-1, over classes that occur."""
    videos: int
    """Of the split, those that could not be read included."""
    missing: int
    """Videos that could not be read: they count neither as right nor as wrong."""
    views: str
    """clips x crops."""
    gflops_per_view: float
    """10^9 multiply-additions, as papers count."""
    gflops: float
    """Of all views."""
    parameters: int
    per_class: dict[str, float | None]
    """Top-1 of each class; None where no video of it was read."""


def identity_of(trained: Finetuned, manifest: Manifest, rank: DistributedContext) -> CacheKey:
    """What the predictions of a test depend on."""
    config = trained.config
    settings = {
        "clips": config.test.clips,
        "crops": config.test.crops,
        "sampling": config.data.sampling,
        "precision": resolve_precision(config.engine.precision, rank.device),
        **config.clip.model_dump(),
    }
    return CacheKey(trained.fingerprint, manifest.fingerprint, settings)


def result_folder(run: Path, trained: Finetuned, manifest: Manifest, identity: CacheKey) -> Path:
    """Where a test leaves its files: another folder for another checkpoint, other views or other videos."""
    views = trained.config.test
    name = f"step{trained.step}_{manifest.split}_{views.clips}x{views.crops}_{trained.config.data.sampling}"
    return run / "test" / f"{name}_{identity.digest}"


def predict(
    trained: Finetuned, reader: ShardReader, folder: Path, identity: CacheKey, rank: DistributedContext
) -> Results:
    """Class probabilities of every video, float32 (classes,), the mean over its views' softmax. Collective."""
    config = trained.config
    precision = resolve_precision(config.engine.precision, rank.device)
    model = FrozenModel(trained.model, rank, precision, config.test.batch_size)

    def compute(views: np.ndarray) -> np.ndarray:
        return model(views).softmax(1).mean(0).numpy()

    read = lambda sample: read_views(reader, int(sample), config)  # noqa: E731
    items = items_of(reader)
    return infer(items, read, compute, folder / "parts", identity, rank, "test", config.data.threads)


def match_classes(trained: tuple[str, ...], tested: tuple[str, ...], shards: str) -> NDArray[np.int64]:
    """The logit of each label of the tested shards, by the classes' names.

    Raises:
        UserError: naming the classes that the model was not trained on.
    """
    unknown = [name for name in tested if name not in trained]
    if unknown:
        raise UserError(
            f"{len(unknown)} classes of {shards} are none of the {len(trained)} that the model was trained on, "
            f"{unknown[0]!r} first: make the shards from the same list of classes"
        )
    return np.array([trained.index(name) for name in tested], np.int64)


def labels_of(reader: ShardReader, results: Results, logits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The true class of every video that was read, in the order of ``results.values``.

    Raises:
        UserError: a video has no class, or its shard can no longer be read.
    """
    labels = []
    for name in results.values:
        try:
            meta = reader.read_meta(int(name))
        except CorruptSample as error:
            raise UserError(f"{reader.folder} has changed since its videos were read ({error}): mend it") from error
        if not 0 <= meta.label < len(logits):
            raise UserError(f"{meta.where} in {reader.folder} has no class: a test needs a split with labels")
        labels.append(int(logits[meta.label]))
    return np.array(labels, np.int64)


def evaluate(trained: Finetuned, results: Results, labels: NDArray[np.int64]) -> tuple[Report, NDArray[np.int64]]:
    """The figures, and the confusion matrix (true class, predicted class) of counts.

    Raises:
        UserError: no video could be read.
    """
    if not results.values:
        raise UserError(f"none of the {len(results.unreadable)} videos could be read, so there is nothing to count")
    config, names = trained.config, trained.class_names
    chances = np.stack(list(results.values.values()))  # (videos, classes)
    ranking = np.argsort(-chances, axis=1, kind="stable")
    hits = ranking == labels[:, None]
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, ranking[:, 0]), 1)
    totals = confusion.sum(1)
    per_class = {
        name: float(100 * confusion[number, number] / totals[number]) if totals[number] else None
        for number, name in enumerate(names)
    }
    found = [value for value in per_class.values() if value is not None]
    gflops = forward_gflops(config, len(names))
    views = config.test
    report = Report(
        top1=float(100 * hits[:, :1].any(1).mean()),
        top5=float(100 * hits[:, :5].any(1).mean()),
        mean_class=float(np.mean(found)),
        videos=len(results.values) + len(results.unreadable),
        missing=len(results.unreadable),
        views=f"{views.clips} x {views.crops}",
        gflops_per_view=gflops,
        gflops=gflops * views.clips * views.crops,
        parameters=count_classifier_parameters(config, len(names)),
        per_class=per_class,
    )
    return report, confusion


def write_predictions(path: Path, trained: Finetuned, reader: ShardReader, results: Results, top: int = 5) -> None:
    """A CSV with a row a video: shard, key, source, true class, and the ``top`` classes with their probabilities.

    A video that could not be read has the reason in their place.
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
        chances = results.values[name]
        best = np.argsort(-chances, kind="stable")[:top]
        cells = [cell for c in best for cell in (trained.class_names[c], f"{chances[c]:.6f}")]
        writer.writerow([*origin, "", *cells])
    write_atomically(path, text.getvalue().encode())


def _origin(reader: ShardReader, sample: int) -> list[str]:
    """Shard and key, source, and class of a video, as far as its shard can be read."""
    cells = [str(sample), "", ""]
    with suppress(CorruptSample):
        cells[0] = reader.read_meta(sample).where
        facts = reader.read_json(sample)
        cells[1:] = [facts["source"], facts["class_name"]]
    return cells


def write_report(path: Path, report: Report, **more: object) -> None:
    """The figures as JSON."""
    write_atomically(path, (json.dumps({**asdict(report), **more}, indent=1) + "\n").encode())


def draw_confusion(path: Path, confusion: NDArray[np.int64], names: tuple[str, ...], heading: str) -> None:
    """The confusion matrix as a PNG: shares of each true class; counts and names where there is room for them."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    few = len(names) <= 30
    figure = Figure(
        figsize=(max(5.0, 0.5 * len(names)), max(4.5, 0.45 * len(names))) if few else (11, 10), layout="constrained"
    )
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    if few:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if shares[row, column] > 0.6 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(heading, fontsize=10)
    with atomic_path(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130)

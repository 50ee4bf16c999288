"""Loss and accuracy of a classifier on held-out videos, on one rank in this process, against plain torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from motionmae.config import Config
from motionmae.data.held_out.views import read_views
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.data.shards.manifest import write_manifest
from motionmae.distributed.context import DistributedContext
from motionmae.training.validation import accuracy, rounds
from motionmae.training.validation.accuracy import Accuracy, predict, summarise
from motionmae.training.validation.measure import UnreadableShardsError
from tests.training.shards import make_shards, tiny_run
from tests.training.validation.workers import NoPause

CLASSES = ("bar0", "bar1", "bar2")
UNMIXED = {"task": "finetune", "finetune.mixup": 0.0, "finetune.cutmix": 0.0}
GONE = CorruptSample(Reason.DECODE, "x.tar", "gone")
ONE = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "val", shards=2, samples=4, classes=3)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])


class Brightness(torch.nn.Module):
    """Logits of three classes from the brightness of a clip's colours; keeps the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, clips: Tensor) -> Tensor:
        self.sizes.append(tuple(clips.shape))
        assert clips.dtype == torch.uint8
        left, right = clips.double().mean((1, 2, 4)).tensor_split(2, 1)
        return torch.stack([left.mean(1), right.mean(1), 2 * left.mean(1) - right.mean(1)], 1) / 10


def config_of(shards: Path, tmp_path: Path, **validation: Any) -> Config:
    changes = {f"validation.{key}": value for key, value in validation.items()}
    return tiny_run(shards, tmp_path).updated({"validation.shards": str(shards), **changes, **UNMIXED})


def test_figures_are_those_of_plain_torch_from_the_mean_probabilities_of_all_views(shards: Path, tmp_path: Path):
    config = config_of(shards, tmp_path, clips=2, crops=3, batch_size=4)
    model = Brightness()
    measured = Accuracy(config, CLASSES, ONE, sharded=False).measure(model, NoPause())
    reader = open_reader(shards)
    labels = torch.tensor([reader.read_meta(sample).label for sample in range(8)])
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    views = [
        torch.from_numpy(read_views(reader, sample, config.updated({"test.clips": 2, "test.crops": 3})))
        for sample in range(8)
    ]
    chances = torch.stack([Brightness()(each).softmax(1).mean(0) for each in views])
    assert model.sizes == [(4, 4, 32, 32, 3), (2, 4, 32, 32, 3)] * 8  # six views of a video, at most four at once
    right = chances.argmax(1) == labels
    assert measured.figures == pytest.approx(
        {"loss": float(functional.nll_loss(chances.log(), labels)), "top1": 100 * float(right.double().mean()),
         "top5": 100.0}, rel=1e-5,
    )  # fmt: skip
    assert (measured.videos, measured.missing) == (8, 0)
    assert measured.confusion is not None
    assert measured.confusion.sum() == 8
    assert measured.confusion.sum(1).tolist() == [3, 3, 2]  # rows are true classes
    assert np.trace(measured.confusion) == int(right.sum()) < 8


def test_classes_are_matched_by_name(shards: Path, tmp_path: Path):
    """The same videos, whose manifest names the classes in another order; a model with one class more."""
    (tmp_path / "turned").mkdir()
    for path in shards.iterdir():
        if path.name != "manifest.json":
            (tmp_path / "turned" / path.name).hardlink_to(path)
    write_manifest(tmp_path / "turned", replace(load_manifest(shards), class_names=("bar1", "bar2", "bar0")))
    config = config_of(tmp_path / "turned", tmp_path)
    measured = Accuracy(config, (*CLASSES, "x"), ONE, sharded=False).measure(FourClasses(), NoPause())
    assert measured.confusion is not None
    assert measured.confusion.sum(1).tolist() == [2, 3, 3, 0]  # labels 0, 1, 2 of the shards are bar1, bar2, bar0
    assert measured.confusion.shape == (4, 4)


class FourClasses(Brightness):
    def forward(self, clips: Tensor) -> Tensor:
        return functional.pad(super().forward(clips), (0, 1), value=-1e3)


def unreadable(samples: dict[int, Exception]) -> Callable[..., Any]:
    def read(reader: Any, sample: int, config: Config) -> Any:
        if sample in samples:
            raise samples[sample]
        return read_views(reader, sample, config)

    return read


@pytest.mark.parametrize(("sharded", "passes"), [(False, 6), (True, 8)])
def test_unreadable_videos_count_neither_as_right_nor_as_wrong(
    sharded: bool, passes: int, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At ZeRO 3 the other ranks need as many forward passes of the same size as for a readable video."""
    monkeypatch.setattr(accuracy, "read_views", unreadable(dict.fromkeys((1, 4), GONE)))
    model = Brightness()
    config = config_of(shards, tmp_path, clips=2, crops=3, batch_size=9)
    measured = Accuracy(config, CLASSES, ONE, sharded=sharded).measure(model, NoPause())
    assert (measured.videos, measured.missing) == (6, 2)
    assert model.sizes == [(6, 4, 32, 32, 3)] * passes
    assert measured.confusion is not None
    assert measured.confusion.sum(1).tolist() == [3, 1, 2]


def test_a_failure_of_the_storage_or_of_the_shards_ends_the_measurement(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measurement = Accuracy(config_of(shards, tmp_path), CLASSES, ONE, sharded=False)
    monkeypatch.setattr(accuracy, "read_views", unreadable({3: OSError("the disk is gone")}))
    with pytest.raises(UnreadableShardsError, match="the disk is gone"):
        measurement.measure(Brightness(), NoPause())
    monkeypatch.setattr(accuracy, "read_views", unreadable(dict.fromkeys(range(8), GONE)))
    with pytest.raises(UnreadableShardsError, match="none of the 8 videos can be read"):
        measurement.measure(Brightness(), NoPause())


def test_a_video_without_a_class_is_named(shards: Path, tmp_path: Path):
    measurement = Accuracy(config_of(shards, tmp_path), CLASSES, ONE, sharded=False)
    for labels in ([0, 1], []):  # of two classes, label 2 is none
        measurement._labels = np.array(labels, np.int64)
        with pytest.raises(UnreadableShardsError, match=r"has no class: give shards of a split with labels") as found:
            measurement.measure(Brightness(), NoPause())
        assert str(shards) in str(found.value)


def test_a_rank_measures_every_second_video(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rank 1 of 2 has the videos 1, 3, 5 and 7."""
    mine: list[Any] = []
    monkeypatch.setattr(rounds, "gather_objects", lambda found: mine.extend(found) or [found, found])
    rank = DistributedContext(rank=1, local_rank=1, world=2, device=torch.device("cpu"))
    Accuracy(config_of(shards, tmp_path), CLASSES, rank, sharded=False).measure(Brightness(), NoPause())
    assert [prediction.label for prediction in mine] == [1, 0, 2, 1]


def test_places_and_losses_by_hand():
    first = predict(np.array([0.5, 0.25, 0.25], np.float32), 2)
    assert (first.predicted, first.place) == (0, 2)
    assert first.loss == pytest.approx(np.log(4))
    measured = summarise([first, predict(np.array([0.0, 1.0, 0.0], np.float32), 1)], missing=1, classes=3)
    assert measured.figures == pytest.approx({"loss": np.log(2), "top1": 50, "top5": 100})
    assert measured.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_top_1_and_top_5_count_up_to_their_places():
    """The true class at places 1, 2, 5 and 6 of 7; equal probabilities count for the class with the smaller number."""
    read = [predict(np.array(row, np.float32), 0) for row in falling(0, 1, 4, 5)]
    assert [each.place for each in read] == [0, 1, 4, 5]
    assert summarise(read, missing=0, classes=7).figures == pytest.approx(
        {"loss": float(np.mean([each.loss for each in read])), "top1": 25, "top5": 75}
    )
    assert [predict(np.array([0.5, 0.5], np.float32), label).place for label in (0, 1)] == [0, 1]
    assert predict(np.array([0.0, 1.0], np.float32), 0).loss == pytest.approx(38 * np.log(10))


def falling(*places: int) -> list[list[float]]:
    """Return probabilities of seven classes in which class 0 stands at each of ``places``, from 0."""
    scores = [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05]
    return [[scores[place], *scores[:place], *scores[place + 1 :]] for place in places]

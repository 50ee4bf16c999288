"""Figures of a validation: the same for every number of ranks and ZeRO stage, and right by hand."""

from collections.abc import Generator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from motionmae.data.held_out.views import read_views
from motionmae.data.open_shards import open_reader
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.stop_requests import Request
from motionmae.errors import UserError
from motionmae.models.classifier import build_classifier
from motionmae.models.motionmae import Losses
from motionmae.runs.best_checkpoint import Best
from motionmae.runs.end_reason import EndReason
from motionmae.training.validation import heads, rounds
from motionmae.training.validation.accuracy import predict, summarise
from motionmae.training.validation.measure import UnreadableShardsError
from motionmae.training.validation.nearest import classify_by_neighbours
from motionmae.training.validation.rounds import in_rounds
from motionmae.training.validation.validator import StopValidationError
from motionmae.training.validation_record import ValidationRecord
from tests.training.launch import run_ranks
from tests.training.shards import make_shards, tiny_run
from tests.training.validation.workers import measure_all

UNMIXED = {"finetune.mixup": 0.0, "finetune.cutmix": 0.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return make_shards(folder / "train", classes=3), make_shards(folder / "val", shards=2, samples=5, classes=3)


@pytest.mark.long
def test_one_two_and_three_ranks_and_all_stages_give_the_same_figures(shards: tuple[Path, Path], tmp_path: Path):
    train, val = map(str, shards)
    validation = {"shards": val, "heldout_clips": 20, "knn_train": train, "knn_k": 3}
    pretrain = tiny_run(shards[0], tmp_path, validation=validation, engine={"micro_batch_size": 1})
    finetune = pretrain.updated({"validation.knn_train": "", "validation.crops": 3, "task": "finetune", **UNMIXED})
    answers = {}
    for world, stage in ((1, 0), (2, 2), (3, 3)):
        cases = [case.updated({"engine.zero_stage": stage}) for case in (pretrain, finetune)]
        answers[world] = run_ranks(world, measure_all, cases)
    reference = answers[1][0]
    assert set(reference[0][0]) == {"loss", "loss_space", "loss_time", "explained_space", "explained_time", "knn"}
    assert sum(map(sum, reference[1][1])) == 10
    for ranks in answers.values():
        assert all(found == reference for found in ranks)


def test_loss_and_accuracy_are_those_of_plain_torch(shards: tuple[Path, Path], tmp_path: Path):
    config = tiny_run(shards[0], tmp_path, validation={"shards": str(shards[1])}).updated(
        {"task": "finetune", **UNMIXED}
    )
    figures, confusion = run_ranks(1, measure_all, [config])[0][0]
    model = build_classifier(config, 3).eval()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    reader = open_reader(shards[1])
    labels = torch.tensor([reader.read_meta(sample).label for sample in range(10)])
    views = config.updated({"test.clips": 1, "test.crops": 1})
    with torch.no_grad():
        logits = torch.cat([model(torch.from_numpy(read_views(reader, sample, views))) for sample in range(10)])
    assert figures["loss"] == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)
    assert figures["top1"] == pytest.approx(float(100 * (logits.argmax(1) == labels).float().mean()))
    assert figures["top5"] == 100
    assert sum(confusion[n][n] for n in range(3)) == int((logits.argmax(1) == labels).sum())


def test_places_and_losses_by_hand():
    first = predict(np.array([0.5, 0.25, 0.25], np.float32), 2)
    assert (first.predicted, first.place) == (0, 2)
    assert first.loss == pytest.approx(np.log(4))
    measured = summarise([first, predict(np.array([0.0, 1.0, 0.0], np.float32), 1)], missing=1, classes=3)
    assert measured.figures == pytest.approx({"loss": np.log(2), "top1": 50, "top5": 100})
    assert measured.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_the_best_is_the_highest_accuracy_or_the_lowest_loss_and_the_others_wait():
    record = ValidationRecord()
    waits = []
    for step, value in enumerate([50.0, 60.0, 60.5, 60.0, float("nan"), 62.0], 1):
        record = record.after(step, "top1", value, min_delta=1.0)
        waits.append((record.best.step if record.best else 0, record.waited))
    assert waits == [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (6, 0)]
    falling = ValidationRecord().after(1, "loss", 2.0, 0.0).after(2, "loss", 1.5, 0.0).after(3, "loss", 1.5, 0.0)
    assert falling.best is not None
    assert (falling.best.step, falling.waited) == (2, 1)
    assert ValidationRecord().after(5, "off", None, 0.0).best is None
    assert falling.under("other shards").best is None
    assert falling.under("").best == falling.best
    assert falling.describe_other_best(3) == "; --step best takes those of step 2, the best by validation (loss 1.5)"
    assert falling.describe_other_best(2) == ValidationRecord().describe_other_best(2) == ""


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


def test_neighbours_vote_with_the_exponential_of_their_cosine():
    """Centred training features point to east, north and west. A query a bit north of east: cosines 0.8, 0.6, -0.8."""
    train = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32) + 5
    query = np.array([[0.8, 0.6]], np.float32) + 5
    labels = np.array([0, 1, 2, 1])
    assert classify_by_neighbours(train, labels, query, 1, 0.1).tolist() == [0]
    # exp(0.8 / T) against exp(0.6 / T) + exp(-0.6 / T): 2.23 < 1.82 + 0.55 at T = 1, 54.6 > 20.1 at T = 0.2
    assert classify_by_neighbours(train, labels, query, 4, 1.0).tolist() == [1]
    assert classify_by_neighbours(train, labels, query, 9, 0.2).tolist() == [0]
    assert classify_by_neighbours(train, labels, query, 2, 1.0).tolist() == [0]


@pytest.mark.parametrize(
    ("metric", "value", "delta", "is_best"),
    [
        ("top1", 51.0, 1.0, False),  # an improvement of exactly min_delta is none
        ("top1", 51.1, 1.0, True),
        ("top1", 50.0, 0.0, False),
        ("knn", 49.0, 0.0, False),
        ("loss", 49.0, 1.0, False),
        ("loss", 48.9, 1.0, True),
        ("loss", 50.0, 0.0, False),
        ("loss", float("nan"), 0.0, False),
    ],
)
def test_a_new_best_exceeds_the_last_by_more_than_min_delta(metric: str, value: float, delta: float, is_best: bool):
    record = ValidationRecord(owed=True, waited=2, best=Best(1, metric, 50.0)).after(2, metric, value, delta)
    assert (record.step, record.owed, record.waited) == (2, False, 0 if is_best else 3)
    assert record.best == (Best(2, metric, value) if is_best else Best(1, metric, 50.0))


@pytest.mark.parametrize(("own", "idle"), [(0, 0), (1, 1)])
def test_rounds_give_the_items_in_order_and_idle_where_a_rank_has_none(
    own: int, idle: int, monkeypatch: pytest.MonkeyPatch
):
    parts = [["a", "c"], ["b"]]
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine if n == own else parts[n] for n in range(2)])
    rank = DistributedContext(rank=own, local_rank=own, world=2, device=torch.device("cpu"))
    pause, idled = Mock(), Mock()
    assert in_rounds(3, (item for item in parts[own]), rank, pause, idled) == ["a", "b", "c"]
    assert [call[0] for call in pause.method_calls] == ["begin", "end"] * 2
    assert idled.call_count == idle


class StoppingPause:
    def begin(self) -> None: ...

    def end(self) -> None:
        raise StopValidationError(Request(EndReason.PREEMPTED, save=False))


def test_a_stop_closes_what_reads_the_videos():
    closed = False

    def results() -> Generator[int, None, None]:
        nonlocal closed
        try:
            yield from range(2)
        finally:
            closed = True

    reading = results()
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    with pytest.raises(StopValidationError):
        in_rounds(2, reading, rank, StoppingPause(), lambda: None)
    assert closed


def test_sums_of_heads_by_hand(shards: tuple[Path, Path], tmp_path: Path):
    """Three clips in groups of two and one; means are over clips, whatever the groups."""
    config = tiny_run(shards[0], tmp_path, validation={"shards": str(shards[1])})
    held_out = heads.HeldOutClips(config, str(shards[1]), 17, torch.device("cpu"))
    assert (held_out.groups, heads.CLIPS) == (3, 8)
    sizes = {(first, every): [len(batch.seeds) for batch in held_out.read(first, every)]
             for first, every in ((0, 1), (0, 2), (1, 2))}  # fmt: skip
    assert sizes == {(0, 1): [8, 8, 1], (0, 2): [8, 1], (1, 2): [8]}
    sums = [{"space": torch.tensor([6.0, 2.0, 4.0])}, {"space": torch.tensor([3.0, 1.0, 2.0])}]
    assert {head: mean.tolist() for head, mean in heads.mean_targets(sums).items()} == {"space": [1.5, 0.5]}
    assert {head: total.tolist() for head, total in heads.add(sums).items()} == {"space": [9.0, 3.0, 6.0]}
    (batch,) = held_out.read(2, 3)
    losses = Losses(*torch.tensor([3.0, 2.0, 1.0]))
    (eight, *_) = held_out.read()
    assert held_out.sum_losses(eight, lambda *_: losses) == {"total": 24.0, "space": 16.0, "time": 8.0}
    assert held_out.sum_losses(batch, lambda *_: losses) == {"total": 3.0, "space": 2.0, "time": 1.0}


class Measuring:
    """A replacement for held-out clips that gives the sums of two groups."""

    groups, clips, config = 2, 10, None

    def __init__(self) -> None:
        self.baselines = 0

    def sum_targets(self, batch: int) -> dict[str, torch.Tensor]:
        return {"space": torch.tensor([1.0, 2.0])}

    def sum_baselines(self, batch: int, means: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.baselines += 1
        assert means["space"].tolist() == [0.5]
        return {"space": torch.tensor(20.0)}

    def sum_losses(self, batch: int, forward: object) -> dict[str, torch.Tensor]:
        return {"total": torch.tensor(15.0), "space": torch.tensor(5.0), "time": torch.tensor(0.0)}

    def read(self, first: int, every: int) -> Generator[int, None, None]:
        yield from range(first, self.groups, every)


def test_figures_of_heads_and_baselines_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    measurement = heads.HeadLosses(tiny_run(tmp_path, tmp_path), rank, sharded=False)
    measurement._held_out = clips = Measuring()  # type: ignore[assignment]
    for _ in range(2):
        found = measurement.measure(None, Mock())  # type: ignore[arg-type]
        assert found.figures == pytest.approx({"loss": 3.0, "loss_space": 1.0, "explained_space": 0.75})
        assert (found.videos, found.missing) == (10, 0)
    assert clips.baselines == 2  # of two groups, in the first validation only


def test_clips_that_cannot_be_read_end_the_measurement_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Gone(Measuring):
        def read(self, first: int, every: int) -> Generator[int, None, None]:
            yield 0
            raise UserError("the disk is gone")

    monkeypatch.setattr(rounds, "gather_objects", lambda mine: [mine])
    rank = DistributedContext(rank=0, local_rank=0, world=1, device=torch.device("cpu"))
    measurement = heads.HeadLosses(tiny_run(tmp_path, tmp_path), rank, sharded=False)
    measurement._held_out = Gone()  # type: ignore[assignment]
    with pytest.raises(UnreadableShardsError, match="the disk is gone"):
        measurement.measure(None, Mock())  # type: ignore[arg-type]

"""What a run remembers of its validations: the best one, how many came since, and what changes that."""

from dataclasses import asdict
from pathlib import Path

import pytest

from motionmae.runs.best_checkpoint import Best
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.training.validation_record import ValidationRecord


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


def test_a_validation_without_the_metric_changes_nothing_but_its_step():
    before = ValidationRecord(2, Best(2, "top1", 50.0), waited=3, owed=True, protocol="p")
    assert before.after(4, "off", None, 0.0) == ValidationRecord(4, Best(2, "top1", 50.0), 3, False, "p")


def test_the_protocol_outlives_each_validation():
    first = ValidationRecord(protocol="p").after(2, "top1", 0.0, 1.0)  # no accuracy is too low for the first one
    assert first == ValidationRecord(2, Best(2, "top1", 0.0), protocol="p")
    assert first.after(4, "top1", 0.0, 1.0) == ValidationRecord(4, Best(2, "top1", 0.0), 1, protocol="p")
    nan = ValidationRecord().after(2, "loss", float("nan"), 0.0)
    assert nan == ValidationRecord(2, None, waited=1)


def test_another_protocol_begins_a_new_search_and_a_validation_stays_owed():
    record = ValidationRecord(6, Best(4, "knn", 30.0), waited=2, owed=True, protocol="old")
    assert record.under("old") is record
    assert record.under("new") == ValidationRecord(owed=True, protocol="new")


def test_a_best_checkpoint_that_is_gone_is_no_longer_the_best(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    for step in (4, 6):
        store.commit(store.begin(step), step, {"trainer": {"data_step": step}}, [])
    kept, lost = (ValidationRecord(6, Best(step, "loss", 0.5), 2, True, "p") for step in (4, 2))
    assert kept.without_lost_best(store) is kept
    assert asdict(lost.without_lost_best(store)) == {
        "step": 6, "best": None, "waited": 0, "owed": True, "protocol": "p",
    }  # fmt: skip
    assert ValidationRecord(6, waited=2).without_lost_best(store) == ValidationRecord(6, waited=2)

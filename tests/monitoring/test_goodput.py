"""Goodput of runs in which every second is known, and of runs with random histories."""

import random
from typing import Any

import pytest

from monitoring.goodput import CATEGORIES, Goodput, GoodputTracker, track_goodput
from motionmae.runs.end_reason import EndReason

Row = dict[str, Any]


class FakeRun:
    """Writes a run's rows as training does, and keeps the true account beside it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rows: list[Row] = []
        self.truth = dict.fromkeys(("productive", *CATEGORIES), 0.0)
        self.attempts = 0
        self.step = self.saved = 0
        self.pending: list[float] = []  # productive seconds of the steps since the last save

    def spend(self, cause: str, seconds: float) -> None:
        self.now += seconds
        self.truth[cause] += seconds

    def event(self, kind: str, **fields: Any) -> None:
        self.rows.append({"attempt": str(self.attempts), "kind": kind, "step": self.step, "time": self.now, **fields})

    def start(self, init: float = 20.0, restore: float = 5.0) -> None:
        self.attempts += 1
        self.spend("init", init / 2)
        self.step = self.saved
        self.event("start", age=init / 2)
        if self.saved:
            self.spend("restore", restore)
            self.event("resume", seconds=restore)
        self.spend("init", init / 2)
        self.event("ready")
        lost = sum(self.pending)
        self.truth["productive"] -= lost
        self.truth["lost_work"] += lost
        self.pending = []

    def train(self, steps: int, seconds: float = 1.0, wait: float = 0.25, other: float = 0.05) -> None:
        for _ in range(steps):
            self.spend("productive", seconds)
            self.spend("data_wait", wait)
            self.spend("other", other)
            self.pending.append(seconds)
        self.step += steps
        row = {"step_seconds": seconds + wait + other, "data_wait_seconds": wait, "other_seconds": other}
        self.rows.append({"attempt": str(self.attempts), "step": self.step, "time": self.now, **row})

    def save(self, seconds: float = 2.0) -> None:
        self.spend("checkpoint_blocking", seconds)
        self.event("checkpoint", blocking=seconds)
        self.saved, self.pending = self.step, []

    def stop(self, reason: EndReason) -> None:
        self.save()
        self.event("stop", reason=reason)


def assert_is(found: Goodput, run: FakeRun) -> None:
    assert found.productive == pytest.approx(run.truth["productive"])
    assert found.badput == pytest.approx({category: run.truth[category] for category in CATEGORIES})
    assert found.productive + sum(found.badput.values()) == pytest.approx(found.elapsed)


def test_an_undisturbed_run():
    run = FakeRun()
    run.event("submitted")
    run.spend("queue_wait", 300)
    run.start()
    run.train(10)
    run.save()
    run.event("finish")
    found = track_goodput(run.rows).totals()
    assert_is(found, run)
    assert found.elapsed == pytest.approx(300 + 20 + 10 * 1.3 + 2)
    assert found.ratio == pytest.approx(10 / 335)
    assert found.ratio_without_queue == pytest.approx(10 / 35)


def test_a_preemption_costs_queue_init_and_restore_though_no_step_is_repeated():
    run = FakeRun()
    run.start()
    run.train(10)
    run.stop(EndReason.PREEMPTED)
    run.spend("queue_wait", 100)
    run.start()
    run.train(10)
    assert_is(track_goodput(run.rows).totals(), run)


def test_a_kill_loses_the_steps_since_the_save_in_the_middle_of_a_row():
    run = FakeRun()
    run.start()
    run.train(4, wait=0, other=0)
    run.save()
    run.train(6, wait=0, other=0)
    run.train(6, wait=0, other=0)
    run.spend("downtime", 50)
    run.start()  # at step 4 again
    run.train(12, wait=0, other=0)
    found = track_goodput(run.rows).totals()
    assert_is(found, run)
    assert found.badput["lost_work"] == 12
    run.saved = 9  # a checkpoint in the middle of what one row tells of
    run.pending = [1.0] * 7
    run.start(restore=0)
    assert track_goodput(run.rows).totals().badput["lost_work"] == 12 + 7


def test_skipped_steps_are_lost_work():
    run = FakeRun()
    run.start()
    run.rows.append({"kind": "nonfinite", "step": 2, "time": run.now + 1.0})
    run.train(4, wait=0, other=0)
    assert track_goodput(run.rows).totals().badput["lost_work"] == 1
    assert track_goodput(run.rows).totals().productive == 3


def test_a_step_that_was_skipped_before_a_restart_is_lost_once():
    run = FakeRun()
    run.start()
    run.train(2, wait=0, other=0)
    run.save()
    run.rows.append({"kind": "nonfinite", "step": 3, "time": run.now})
    run.spend("downtime", 5)
    run.start()
    run.train(3, wait=0, other=0)
    assert_is(track_goodput(run.rows).totals(), run)
    assert track_goodput(run.rows).totals().badput["lost_work"] == 0


def test_a_run_is_silent_after_three_intervals_and_a_minute():
    run = FakeRun()
    run.start()
    run.train(10)
    run.train(10)
    tracker = track_goodput(run.rows)
    assert tracker.row_interval == pytest.approx(13)
    assert not tracker.is_silent(run.now + 3 * 13 + 59)
    assert tracker.is_silent(run.now + 3 * 13 + 61)


def test_starting_a_finished_run_again_changes_nothing():
    run = FakeRun()
    run.start()
    run.train(3)
    run.event("finish")
    before = track_goodput(run.rows).totals()
    run.now += 86400
    run.event("start", age=1)
    run.event("finish")
    assert track_goodput(run.rows).totals() == before == track_goodput(run.rows).totals(run.now)


def test_idle_time_is_downtime_or_queue_wait():
    run = FakeRun()
    run.start()
    run.train(3)
    assert track_goodput(run.rows).totals(run.now + 50).badput["downtime"] == pytest.approx(50)
    run.stop(EndReason.PREEMPTED)
    assert track_goodput(run.rows).totals(run.now + 50).badput["queue_wait"] == pytest.approx(50)


def test_a_run_that_dies_while_it_is_built():
    run = FakeRun()
    run.event("start", age=0)
    run.spend("init", 7)
    run.event("stop", reason=EndReason.USER_ERROR, error="UserError")
    run.spend("downtime", 60)
    run.start()
    assert_is(track_goodput(run.rows).totals(), run)


def test_no_rows():
    assert track_goodput([]).totals().ratio == 0 == track_goodput([]).totals().ratio_without_queue


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_add_up_in_any_order_of_rows(seed: int):
    dice = random.Random(seed)
    run = FakeRun()
    for _ in range(dice.randint(1, 6)):
        run.start(init=dice.uniform(1, 30), restore=dice.uniform(0, 5))
        for _ in range(dice.randint(0, 8)):
            run.train(dice.randint(1, 9), dice.uniform(0.1, 2), wait=0, other=dice.uniform(0, 0.2))
            if dice.random() < 0.4:
                run.save(dice.uniform(0, 3))
        if dice.random() < 0.5:
            run.stop(dice.choice([EndReason.PREEMPTED, EndReason.TERMINATED]))
            run.spend("queue_wait", dice.uniform(0, 100))
        else:
            run.spend("downtime", dice.uniform(1, 100))
    run.start()
    dice.shuffle(run.rows)
    assert_is(track_goodput(run.rows).totals(), run)


def test_incremental_reading_gives_the_same_totals():
    run = FakeRun()
    tracker = GoodputTracker()
    run.start()
    for _ in range(5):
        run.train(3)
        run.save()
    for number, row in enumerate(run.rows):
        tracker.add(row)
        assert tracker.totals().elapsed == track_goodput(run.rows[: number + 1]).totals().elapsed
    assert_is(tracker.totals(), run)


def test_a_rollback_and_a_failure_event():
    run = FakeRun()
    run.start()
    run.train(4, wait=0, other=0)
    run.save()
    run.train(3, wait=0, other=0)
    run.rows.append({"kind": "rollback", "attempt": "1", "step": 4, "time": run.now, "from_step": 7})
    run.step = 4
    run.train(2, wait=0, other=0)
    run.now += 30  # it hangs without a word; then Slurm requeues
    run.event("failure", reason=EndReason.NODE_DOWN, again=True)
    run.now += 50
    run.rows.append({"kind": "start", "attempt": "2", "step": 0, "time": run.now, "age": 0})
    found = track_goodput(run.rows).totals()
    assert found.badput["lost_work"] == 3
    assert found.productive == 4 + 2
    assert found.badput["downtime"] == pytest.approx(30)
    assert found.badput["queue_wait"] == pytest.approx(50)

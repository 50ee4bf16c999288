"""What is read from a run's events and metrics: attempts, their ends, idle times, and the figures of reports."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from motionmae.config import load_config, save_config
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Kind
from motionmae.runs.history import (
    START_VARIABLE,
    Attempt,
    AttemptRecord,
    AttemptTracker,
    RunHistory,
    RunState,
    RunTail,
    idle_category,
)
from tests.runs.test_summary import write


def event(kind: str, time: float, step: int = 0, attempt: str = "a", **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "attempt": attempt, "time": time, **fields}


def start(time: float, attempt: str = "a", **fields: Any) -> dict[str, Any]:
    return event("start", time, attempt=attempt, world=4, hosts=["n1", "n2"], **fields)


def row(step: int, time: float, attempt: str = "a", **fields: Any) -> dict[str, Any]:
    required = {"step_seconds": 1.0, "data_wait_seconds": 0.0, "epoch": 0.0, "clips_per_second": 1.0}
    return {"attempt": attempt, "step": step, "time": time, **required, **fields}


def test_an_attempt_knows_its_place_in_slurm_and_on_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", START_VARIABLE: "3"}.items():
        monkeypatch.setenv(key, value)
    before = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    found = Attempt.begin(5)
    assert found == Attempt(5, found.id, socket.gethostname(), "7", 2, 3)
    assert before <= found.id[:15] <= time.strftime("%Y%m%dT%H%M%S", time.gmtime())  # newer ids sort later
    assert len(found.id) == 15 + 1 + 6
    for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", START_VARIABLE):
        monkeypatch.delenv(key)
    other = Attempt.begin(6)
    assert (other.job, other.restart, other.start) == ("", 0, 0)
    assert other.id != found.id


def test_an_attempt_is_read_from_its_rows() -> None:
    (found,) = AttemptTracker([
        start(100.0, number=3, host="n1", job="7", restart=1, age=20.0),
        event("ready", 130.0, step=40, total_steps=100),
        event("stop", 200.0, step=60, reason="crashed", error="ValueError: x"),
    ]).attempts  # fmt: skip
    assert found.attempt == Attempt(3, "a", "n1", "7", 1)
    assert (found.began, found.hosts, found.world) == (80.0, ["n1", "n2"], 4)
    assert (found.ready, found.first_step, found.last_step, found.last_sign) == (130.0, 40, 40, 200.0)
    assert (found.end, found.error, found.end_text) == (EndReason.CRASHED, "ValueError: x", "ValueError: x")
    assert (found.failure, found.queued) == (None, False)
    assert found.idle_marks == [(200.0, "downtime")]


def test_an_attempt_of_an_older_version_has_less() -> None:
    (found,) = AttemptTracker([event("start", 100.0, world=1)]).attempts
    assert found.attempt == Attempt(0, "a", "?", "", 0)
    assert (found.began, found.hosts) == (100.0, ["?"])


def test_rows_before_the_first_attempt_and_of_strangers_change_nothing() -> None:
    tracker = AttemptTracker([event("submitted", 1.0, attempt=""), event("ready", 2.0, total_steps=1)])
    assert tracker.attempts == []
    assert not tracker.finished
    tracker.add(start(3.0))
    tracker.add(event("ready", 4.0, step=9, attempt="old", total_steps=1))
    (found,) = tracker.attempts
    assert (found.ready, found.first_step, found.last_sign) == (None, 0, 3.0)


def test_nothing_follows_the_end_of_a_run() -> None:
    tracker = AttemptTracker([start(1.0), event("finish", 2.0, step=10)])
    assert tracker.finished
    tracker.add(start(3.0, "b"))
    assert [record.attempt.id for record in tracker.attempts] == ["a"]
    assert tracker.attempts[0].end is EndReason.FINISHED


@pytest.mark.parametrize(
    ("rows", "failure", "queued"),
    [
        ([event("failure", 5.0, reason="killed", again=True)], EndReason.KILLED, True),
        ([event("failure", 5.0, reason="killed", again=False)], EndReason.KILLED, False),
        ([event("failure", 5.0, attempt="", reason="killed", again=True)], None, True),
        ([event("submitted", 5.0, attempt="")], None, True),
        ([event("submitted", 5.0, attempt=""), event("stop", 6.0, reason="stopped")], None, False),
        ([event("checkpoint", 5.0, blocking=0.1)], None, False),
    ],
)
def test_what_the_batch_script_and_a_submission_say(
    rows: list[dict[str, Any]], failure: EndReason | None, queued: bool
) -> None:
    (found,) = AttemptTracker([start(1.0), *rows]).attempts
    assert (found.failure, found.queued) == (failure, queued)


def test_a_failure_seen_from_outside_is_no_sign_of_the_attempt() -> None:
    (found,) = AttemptTracker([start(1.0), event("failure", 5.0, reason="killed")]).attempts
    assert found.last_sign == 1.0
    assert found.end_text == "a rank was killed"


def record(**values: Any) -> AttemptRecord:
    return AttemptRecord(Attempt(), 0.0, ["n1"], 1, last_sign=1000.0, **values)


@pytest.mark.parametrize(
    ("values", "state", "run_state"),
    [
        ({}, "starting", "starting"),
        ({"ready": 1.0}, "training", "training"),
        ({"end": EndReason.STOPPED}, "stopped", "stopped"),
        ({"end": EndReason.CRASHED, "ready": 1.0}, "failed", "failed"),
        ({"failure": EndReason.KILLED, "ready": 1.0}, "failed", "training"),
        ({"end": EndReason.PREEMPTED, "failure": EndReason.KILLED}, "preempted", "preempted"),
        ({"queued": True}, "queued", "starting"),
        ({"queued": True, "failure": EndReason.KILLED}, "requeued", "starting"),
        ({"queued": True, "end": EndReason.STOPPED}, "queued", "stopped"),
        ({"queued": True, "end": EndReason.FINISHED}, "finished", "finished"),
    ],
)
def test_the_state_of_a_run(values: dict[str, Any], state: str, run_state: str) -> None:
    found = record(**values)
    assert found.state(1000.0) == RunState(state)
    assert found.run_state == run_state


def test_a_run_is_silent_after_a_quarter_of_an_hour() -> None:
    assert record(ready=1.0).state(1900.0) is RunState.TRAINING
    assert record(ready=1.0).state(1900.1) is RunState.SILENT
    assert record(end=EndReason.STOPPED).state(1e9) is RunState.STOPPED
    assert record().end_text == "silent"


def test_the_idle_time_after_an_attempt_has_its_categories() -> None:
    found = record(idle_marks=[(900.0, "downtime"), (1010.0, "queue_wait"), (1030.0, "downtime")])
    assert found.idle_until(1100.0) == [
        (1000.0, 1010.0, "downtime"), (1010.0, 1030.0, "queue_wait"), (1030.0, 1100.0, "downtime"),
    ]  # fmt: skip
    assert record().idle_until(1005.0) == [(1000.0, 1005.0, "downtime")]
    assert record().idle_until(1000.0) == []


@pytest.mark.parametrize(
    ("fields", "category"),
    [
        ({"kind": "stop", "reason": "preempted"}, "queue_wait"),
        ({"kind": "stop", "reason": "crashed"}, "downtime"),
        ({"kind": "submitted"}, "queue_wait"),
        ({"kind": "failure", "again": True}, "queue_wait"),
        ({"kind": "failure", "again": True, "inside": True}, "downtime"),  # the job keeps its nodes
        ({"kind": "failure", "again": False}, "downtime"),
        ({"kind": "failure"}, "downtime"),
    ],
)
def test_the_category_of_an_idle_time(fields: dict[str, Any], category: str) -> None:
    assert idle_category(fields) == category


RUN = (
    start(100.0, number=1, code="abc"),
    event("ready", 110.0, total_steps=100),
    row(10, 120.0, loss=2.0, loss_space=1.0, loss_time=0.0, slowest_rank=1, slowest_score=1.3),
    row(20, 130.0, loss=1.0, loss_space=0.5, loss_time=0.0, slowest_rank=1, slowest_score=1.1),
    row(30, 140.0, loss=1.0, loss_space=0.5, loss_time=0.0, slowest_rank=3, slowest_score=1.2),
    event("validation", 141.0, step=30, seconds=1.0, loss=3.0, is_best=True),
    event("validation", 135.0, step=20, seconds=1.0, loss=4.0, is_best=True),
    event("stop", 150.0, step=30, reason="preempted"),
    start(200.0, "b", number=2),
    event("ready", 210.0, step=20, attempt="b", total_steps=120),
    row(30, 220.0, "b", loss=0.9, loss_space=0.4, loss_time=0.0, slowest_rank=1, slowest_score=1.5),
    event("validation", 221.0, step=30, attempt="b", seconds=1.0, loss=2.5),
    event("validation", 222.0, step=40, attempt="b", seconds=1.0, error="no videos"),
    row(40, 230.0, "b", loss=0.8, loss_space=0.3, loss_time=0.0),
)


@pytest.fixture
def history(tmp_path: Path) -> RunHistory:
    return RunHistory(write(tmp_path / "run", *RUN))


def test_the_rows_that_count_are_the_newest_of_each_step(history: RunHistory) -> None:
    assert [(found["step"], found["attempt"]) for found in history.rows] == [
        (10, "a"), (20, "a"), (30, "b"), (40, "b"),
    ]  # fmt: skip
    assert [found["step"] for found in history.all_rows] == [10, 20, 30, 30, 40]
    assert history.resumes == [30]
    assert history.losses == ["loss", "loss_space"]  # the other is 0 throughout
    assert history.total_steps == 120
    assert history.git_revision == "abc"
    assert history.name == "run"
    assert history.notes == []


def test_attempts_have_the_steps_of_their_metrics(history: RunHistory) -> None:
    first, second = history.attempts
    assert (first.last_step, first.last_sign) == (30, 150.0)  # its end comes after its last row
    assert (second.first_step, second.last_step, second.last_sign) == (20, 40, 230.0)


def test_validations_count_once_a_step_and_without_errors(history: RunHistory) -> None:
    assert [(found["step"], found["loss"]) for found in history.validations] == [(20, 4.0), (30, 2.5)]
    assert history.best_validation is not None
    assert history.best_validation["step"] == 20  # the second one at 30 was not the best


def test_the_newest_best_validation_is_the_best(tmp_path: Path) -> None:
    rows = [event("validation", 130.0 + step, step=step, seconds=1.0, loss=9.0 - step / 10, is_best=step < 30)
            for step in (10, 20, 30)]  # fmt: skip
    found = RunHistory(write(tmp_path / "run", *RUN[:5], *rows)).best_validation
    assert found is not None
    assert found["step"] == 20


def test_stragglers_are_slower_by_a_tenth(history: RunHistory) -> None:
    assert history.stragglers() == {1: 2}  # steps 10 and 30; of step 30 only the newer row counts


def test_hosts_hold_equal_shares_of_the_ranks(history: RunHistory) -> None:
    assert [history.host_of(rank) for rank in range(4)] == ["n1", "n1", "n2", "n2"]
    assert history.host_of(9) == "n2"


def test_events_of_some_kinds(history: RunHistory) -> None:
    assert [found["step"] for found in history.of(Kind.READY, Kind.STOP)] == [0, 30, 20]
    assert history.finished_step is None
    assert history.ended("a")
    assert not history.ended("b")
    assert history.require_events() is history
    assert history.config is None


def test_the_end_of_a_run_has_a_step_and_an_attempt(tmp_path: Path) -> None:
    found = RunHistory(write(tmp_path / "run", *RUN, event("finish", 240.0, step=120, attempt="b")))
    assert found.finished_step == 120
    assert found.ended("b")
    assert found.state is RunState.FINISHED


def test_a_run_without_files_is_queued(tmp_path: Path) -> None:
    found = RunHistory(tmp_path / "none")
    assert (found.events, found.rows, found.attempts, found.losses, found.resumes) == ([], [], [], [], [])
    assert (found.total_steps, found.git_revision, found.best_validation) == (None, "", None)
    assert found.state is RunState.QUEUED
    assert found.host_of(0) == "?"
    assert found.stragglers() == {}
    with pytest.raises(UserError, match=r"events\.jsonl has no events: give the folder of a run"):
        found.require_events()


def test_the_config_of_the_newest_attempt_is_read(tmp_path: Path) -> None:
    config = load_config("demo", ["seed=5"])
    save_config(config, tmp_path / "config.yaml")
    found = RunHistory(tmp_path).config
    assert found is not None
    assert found.seed == 5


def test_damaged_rows_are_counted_in_a_note(tmp_path: Path) -> None:
    found = RunHistory(write(tmp_path / "run", start(1.0), event("ready", 2.0), row(1, 3.0), event("stop", 4.0)))
    assert [one["kind"] for one in found.events] == ["start"]
    assert found.notes == [
        f"{tmp_path}/run/events.jsonl: 2 of 3 rows are damaged and left out (row 2, total_steps: Field required)"
    ]
    assert len(found.rows) == 1
    assert len(found.notes) == 1


def test_a_tail_has_the_new_rows_in_order_of_time(tmp_path: Path) -> None:
    run = write(tmp_path / "run", start(5.0), row(1, 3.0), {**row(2, 4.0), "loss": "x"})
    tail = RunTail(run)
    assert [found["time"] for found in tail.new_rows()] == [3.0, 5.0]
    assert tail.new_rows() == []
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"attempt": "a"')
    assert tail.new_rows() == []
    write(run, row(3, 6.0), event("ready", 7.0, total_steps=1))
    assert [found["time"] for found in tail.new_rows()] == [6.0, 7.0]


def test_the_state_now_is_that_of_the_newest_attempt(tmp_path: Path) -> None:
    now = time.time()
    found = RunHistory(write(tmp_path / "run", start(now - 2000), start(now, "b")))
    assert found.state is RunState.STARTING

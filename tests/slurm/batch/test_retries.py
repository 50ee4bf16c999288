"""Requeue policy: retry budget, pauses, blame of nodes, and the commands of a requeue."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import append_row
from motionmae.runs.history import Attempt
from slurm.attempt_log import AttemptLog
from slurm.batch import requeue_policy
from slurm.batch.requeue_policy import RequeuePolicy
from slurm.batch.step_failure import Failure
from slurm.job_state import JobRecord
from slurm.scontrol import JobState, parse_job
from tests.slurm.fakes.controller import NO_ANSWER, REFUSED, RUNNING, Controller, fail_on

SHOW, SCRIPT, REQUEUE = "scontrol show job -o 7", "scontrol write batch_script 7 -", "scontrol requeue 7"
PENDING = "JobState=PENDING Restarts=1"
CANCELLED = "JobState=COMPLETING Reason=None Restarts=0"
OUT_OF_TIME = "JobState=COMPLETING Reason=TimeLimit Restarts=0"
KILLED = Failure(EndReason.KILLED, "node2", 137)


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def policy(tmp_path: Path, controller: Controller) -> RequeuePolicy:
    """The policy of a first attempt of job 7, whose chain has job 8 behind it."""
    record = JobRecord("slurm", "7", f"{tmp_path}/7_0_log.out", "/code", 1.0, chain=("7", "8"), links=1)
    record.write(tmp_path)
    return RequeuePolicy(RunFolder(tmp_path), Attempt(job="7", restart=0), 5, signal_seconds=120)


def _waiting(policy: RequeuePolicy) -> tuple[str, ...]:
    record = JobRecord.read(policy.run.path)
    assert record is not None
    return record.waiting


def _events(policy: RequeuePolicy) -> list[dict[str, object]]:
    path = policy.run.events
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("reason", "retries", "outcomes"),
    [
        (EndReason.KILLED, 5, ["here", 60, 240, 960, 3840, "end"]),
        (EndReason.HUNG, 2, ["here", 60, "end"]),
        (EndReason.TIME_LIMIT, 1, ["here", "end"]),
        (EndReason.KILLED, 0, ["end"]),
        (EndReason.CRASHED, 5, ["here", "end"]),  # a program error is retried once
        (EndReason.CRASHED, 0, ["end"]),
    ],
)
def test_failures_without_a_checkpoint_use_the_budget_up(
    policy: RequeuePolicy, monkeypatch: pytest.MonkeyPatch, reason: EndReason, retries: int, outcomes: list[object]
) -> None:
    policy.max_retries = retries
    seen: list[object] = []
    monkeypatch.setattr(policy, "requeue", seen.append)
    monkeypatch.setattr(policy.chain, "close", lambda: seen.append("end"))
    for start in range(len(outcomes)):
        policy.begin(start, ["node1"], 1, start)
        nodes = policy.retry(Failure(reason, "node2"), lambda: seen.append("here") or ["node1"])
        assert nodes == (["node1"] if outcomes[start] == "here" else [])
    assert seen == outcomes
    rows = _events(policy)
    assert [row["pause"] for row in rows] == [pause if isinstance(pause, int) else 0 for pause in outcomes]
    assert [row["again"] for row in rows] == [outcome != "end" for outcome in outcomes]
    assert [row["inside"] for row in rows] == [outcome == "here" for outcome in outcomes]


def test_a_failure_is_an_event_with_all_that_the_report_needs(policy: RequeuePolicy) -> None:
    start = {"number": 1, "host": "n1", "hosts": ["n1"], "world": 1, "job": "7", "restart": 0, "age": 0.0}
    append_row(policy.run.events, attempt="a7", kind="start", step=0, **start)
    store = CheckpointStore(policy.run.checkpoints)
    store.commit(store.begin(40), 40, {}, [])
    fail_on(policy.run.path, "node3")
    policy.begin(1, ["node1"], 1, 0)
    policy.retry(KILLED, lambda: ["node1"])
    row = _events(policy)[-1]
    assert {key: value for key, value in row.items() if key != "time"} == {
        "attempt": "a7", "kind": "failure", "step": 40, "reason": "killed", "node": "node2", "again": True, "pause": 0,
        "inside": True, "excluded": {"node3": EndReason.BAD_NODE.description}, "job": "7", "restart": 0,
    }  # fmt: skip


def test_a_checkpoint_renews_the_budget(policy: RequeuePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []
    monkeypatch.setattr(policy, "requeue", pauses.append)
    store = CheckpointStore(policy.run.checkpoints)
    for start, step in enumerate((0, 0, 10, 10, 10)):
        if step and not store.complete():
            store.commit(store.begin(step), step, {}, [])
        policy.begin(start, ["node1"], 1, start)
        policy.retry(KILLED)
    assert pauses == [0, 60, 0, 60, 240]


def test_failures_of_the_jobs_of_a_chain_count_together(policy: RequeuePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []
    monkeypatch.setattr(policy, "requeue", pauses.append)
    for job in ("6", "8", "7"):
        policy.attempt = Attempt(job=job, restart=0)
        policy.retry(KILLED)
    assert pauses == [0, 0, 60]  # job 6 is of another submission


@pytest.mark.parametrize("reason", [EndReason.USER_ERROR, EndReason.STOPPED, EndReason.LEASE_LOST])
def test_what_a_retry_cannot_help_ends_the_chain(
    policy: RequeuePolicy, controller: Controller, reason: EndReason
) -> None:
    controller.answers[SHOW] = RUNNING
    assert policy.decide(Failure(reason)) == []
    assert controller.called("scancel") == ["scancel 8"]
    assert _waiting(policy) == ()
    assert controller.called(REQUEUE) == []
    assert not (policy.run.path / "attempts.jsonl").exists()


def test_a_preemption_that_rank_0_could_not_requeue_is_requeued(policy: RequeuePolicy, controller: Controller) -> None:
    controller.answers[SHOW] = RUNNING
    assert policy.decide(Failure(EndReason.PREEMPTED)) == []
    assert controller.called(REQUEUE) == [REQUEUE]
    assert controller.called("scontrol update") == []
    assert not (policy.run.path / "attempts.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "ends"),
    [(PENDING, False), (CANCELLED, True), (CANCELLED.replace("Restarts=0", "Restarts=1"), False), (OUT_OF_TIME, False)],
)
def test_a_job_that_does_not_run_is_not_retried(
    policy: RequeuePolicy, controller: Controller, line: str, ends: bool
) -> None:
    controller.answers[SHOW] = line
    assert policy.decide(KILLED, (), [1]) == []
    assert _waiting(policy) == (() if ends else ("8",))
    assert controller.called(REQUEUE) == []
    assert not (policy.run.path / "attempts.jsonl").exists()


def test_a_requeue_by_rank_0_is_waited_for_only_while_the_job_runs(
    policy: RequeuePolicy, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("slurm.batch.requeue_policy.time.sleep", pauses.append)
    for status, line, count in ((255, PENDING, 0), (1, RUNNING, 0), (255, RUNNING, 1)):
        controller.answers[SHOW] = line
        pauses.clear()
        policy.decide(Failure(EndReason.USER_ERROR, status=status))
        assert pauses == [2.0] * count


def test_a_node_that_is_cut_off_gives_up_after_ten_minutes(
    policy: RequeuePolicy, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(requeue_policy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(requeue_policy.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    controller.answers[SHOW] = NO_ANSWER
    assert policy.decide(Failure(EndReason.NODE_DOWN, "node2"), {"node2"}, [2]) == []
    assert now[0] == 602  # seconds, in steps of two
    assert not (policy.run.path / "attempts.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "lost", "counts", "nodes"),
    [
        ({}, "", [2], "12"),
        ({}, "", [3, 2], "123"),
        ({}, "", [4], ""),
        ({}, "1", [2], "23"),
        ({}, "12", [2], ""),
        ({"preempted": True}, "", [2], ""),
        ({"out_of_time": True}, "", [2], ""),
        ({"batch_host": "node4"}, "", [2], ""),
        ({"seconds_left": 119}, "", [2], ""),
        ({"seconds_left": 120}, "", [2], "12"),  # the signal to save is still to come
    ],
)
def test_nodes_of_this_allocation(
    policy: RequeuePolicy, changes: dict[str, object], lost: str, counts: list[int], nodes: str
) -> None:
    job = JobState("RUNNING", **{"detail": "node[1-3]", "batch_host": "node1", "seconds_left": 9e9, **changes})
    assert policy.nodes_here(job, [f"node{name}" for name in lost], counts) == [f"node{name}" for name in nodes]


def test_nodes_that_failed_or_are_down_are_left_if_others_are_there(
    policy: RequeuePolicy, controller: Controller
) -> None:
    assert policy.nodes_here(None, (), [1]) == []
    job = parse_job(RUNNING)
    controller.answers["scontrol show node"] = "NodeName=node2 State=DOWN"
    assert policy.nodes_here(job, (), [2]) == ["node1", "node3"]
    assert controller.called("scontrol show node") == ["scontrol show node -o node1,node2,node3"]
    fail_on(policy.run.path, "node1")
    controller.answers |= {SHOW: RUNNING, "sinfo": "node1 node3"}
    assert policy.nodes_here(job, (), [1]) == ["node3"]
    assert policy.nodes_here(job, (), [2]) == ["node1", "node3"]  # no other two nodes are up
    controller.answers["sinfo"] = "node1 node3 node4"
    assert policy.nodes_here(job, (), [2]) == []  # the queue has others


def test_a_requeue_keeps_the_signal_of_slurm_from_ending_the_batch_script(
    policy: RequeuePolicy, controller: Controller
) -> None:
    assert policy.requeue()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert controller.calls == [SHOW, REQUEUE]


def test_a_requeued_job_waits_and_avoids_the_nodes_on_which_it_failed(
    policy: RequeuePolicy, controller: Controller
) -> None:
    fail_on(policy.run.path, "node2")
    controller.answers |= {SHOW: RUNNING, SCRIPT: "#!/bin/sh"}
    for pause, first in ((240, 240), (0, 30)):
        controller.calls.clear()
        assert policy.requeue(pause)
        assert f"#SBATCH --begin=now+{first}\n" in controller.scripts[-1]
        moved = ["scontrol update JobId=7 StartTime=now+240"] if pause else []
        changes = ["scontrol update JobId=7 ExcNodeList=node2", *moved]
        assert controller.called("scontrol update") == changes
        assert controller.calls[-len(changes) - 1] == REQUEUE  # Slurm would refuse the changes to a running job


def test_no_node_is_avoided_without_a_review(policy: RequeuePolicy, controller: Controller) -> None:
    fail_on(policy.run.path, "node2")
    controller.answers |= {SHOW: RUNNING, "sbatch": REFUSED}
    assert policy.requeue()
    assert controller.called("scontrol update") == []


@pytest.mark.parametrize("refused", ["ExcNodeList", "StartTime"])
def test_a_queued_job_that_slurm_does_not_change_is_named(
    policy: RequeuePolicy, controller: Controller, refused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_on(policy.run.path, "node2")
    controller.answers |= {SHOW: RUNNING, SCRIPT: "#!/bin/sh", f"scontrol update JobId=7 {refused}": REFUSED}
    assert policy.requeue(60)
    assert "Slurm refused to change the queued job" in capsys.readouterr().out
    controller.answers.clear()
    assert policy.requeue(60)
    assert "refused" not in capsys.readouterr().out


def test_where_slurm_requeues_no_job_the_chain_goes_on(policy: RequeuePolicy, controller: Controller) -> None:
    fail_on(policy.run.path, "node2", "node3")
    controller.answers |= {SHOW: RUNNING, SCRIPT: "#!/bin/sh", REQUEUE: REFUSED}
    assert policy.requeue(60)
    assert controller.called("scontrol update") == ["scontrol update JobId=8 StartTime=now+60 ExcNodeList=node2,node3"]
    controller.calls.clear()
    controller.answers |= {"scontrol show job -o 8": "JobState=CANCELLED"}
    assert not policy.requeue(60)
    assert controller.called("scontrol update") == []


@pytest.mark.parametrize(
    ("line", "reason", "waiting"),
    [
        (OUT_OF_TIME, EndReason.TIME_LIMIT, ("8",)),
        (OUT_OF_TIME.replace("Restarts=0", "Restarts=1"), None, ("8",)),  # already requeued
        (RUNNING, None, ("8",)),
        (CANCELLED, None, ()),
        ("", None, ("8",)),
    ],
)
def test_sigterm_at_the_time_limit_is_a_failure(
    policy: RequeuePolicy, controller: Controller, line: str, reason: EndReason | None, waiting: tuple[str, ...]
) -> None:
    controller.answers[SHOW] = line
    policy.decide_at_time_limit()
    assert [row["reason"] for row in _events(policy)] == ([reason] if reason else [])
    assert controller.called(REQUEUE) == ([REQUEUE] if reason else [])
    assert _waiting(policy) == waiting


def test_a_node_of_the_previous_attempt_that_is_down_is_blamed_once(
    policy: RequeuePolicy, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.log_lost_nodes()
    assert controller.calls == []
    log = AttemptLog(policy.run.path)
    log.log_start(Attempt(job="6", restart=0), ["node1"])  # of another submission
    policy.log_lost_nodes()
    assert controller.calls == []
    log.log_start(Attempt(job="7", restart=0, start=2), ["node1", "node2"])
    controller.answers["scontrol show node"] = "NodeName=node1 State=IDLE\nNodeName=node2 State=DOWN* Reason=dead [root"
    policy.attempt = Attempt(job="7", restart=1)
    for _ in range(2):
        policy.log_lost_nodes()
    assert controller.called("scontrol show node") == ["scontrol show node -o node1,node2"] * 2
    assert "node node2 of the previous attempt is down (dead)" in capsys.readouterr().out
    (row,) = _events(policy)
    assert (row["reason"], row["node"], row["again"], row["pause"]) == ("node_down", "node2", True, 0)
    failures = [json.loads(line) for line in log.path.read_text().splitlines() if '"failure"' in line]
    assert [(row["restart"], row["start"], row["node"]) for row in failures] == [(0, 2, "node2")]

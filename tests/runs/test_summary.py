"""Summaries of runs whose files were written as training writes them, ended in every way, and damaged."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import LineFile
from motionmae.runs.history import RunHistory, RunState
from motionmae.runs.summary import find_runs, summarise_runs
from tests.monitoring.runs import metrics_row

NOW = 1_800_000_000.0


def event(kind: str, step: int = 0, attempt: str = "a", age: float = 100.0, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "attempt": attempt, "time": NOW - age, **fields}


def start(attempt: str = "a", number: int = 1, **fields: Any) -> dict[str, Any]:
    return event("start", attempt=attempt, world=8, hosts=["n1", "n2"], number=number, **fields)


def row(step: int, attempt: str = "a", seconds: float = 2.0, age: float = 10.0) -> dict[str, Any]:
    return {**metrics_row(step, seconds=seconds), "attempt": attempt, "time": NOW - age}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    run = RunFolder(folder)
    run.create()
    for path, of_events in ((run.events, True), (run.metrics, False)):
        file = LineFile(path)
        for one in rows:
            if ("kind" in one) == of_events:
                file.append(one)
        file.close()
    return folder


TRAINING = (start(), event("ready", total_steps=1000), row(40), row(50))


def test_a_training_run_has_its_pace_and_remaining_time(tmp_path: Path):
    write(tmp_path / "runs/vit", *TRAINING)
    (found,) = summarise_runs(tmp_path / "runs", NOW)
    assert (found.name, found.state, found.step, found.total_steps) == ("vit", RunState.TRAINING, 50, 1000)
    assert (found.loss, found.step_seconds, found.hosts, found.ranks) == (2 / 50, 2.0, ("n1", "n2"), 8)
    assert found.eta_seconds == (1000 - 50) * 2.0
    assert found.last_sign == NOW - 10


@pytest.mark.parametrize(
    ("ends", "state", "fault"),
    [
        ([event("stop", 50, reason="stopped")], "stopped", ""),
        ([event("stop", 50, reason="terminated")], "stopped", ""),
        ([event("stop", 50, reason="preempted")], "preempted", ""),
        ([event("finish", 1000)], "finished", ""),
        ([event("stop", 50, reason="crashed", error="ValueError: x")], "failed", "ValueError: x"),
        ([event("failure", 50, reason="node_down", node="n2", again=True)], "requeued", "a node went down (n2)"),
        ([event("failure", 50, reason="killed", again=False)], "failed", "a rank was killed"),
        ([event("stop", 50, reason="stopped"), event("submitted", attempt="", age=5)], "queued", ""),
        ([event("stop", 50, reason="stopped"), start("b", 2, age=3)], "starting", ""),
        ([event("checkpoint_failed", 50, error="disk full")], "training", "save failed: disk full"),
    ],
)
def test_an_end_is_named_as_people_name_it(tmp_path: Path, ends: list[dict[str, Any]], state: str, fault: str):
    write(tmp_path / "run", *TRAINING, *ends)
    (found,) = summarise_runs(tmp_path, NOW)
    assert (found.state, found.fault) == (state, fault)
    assert RunHistory(tmp_path / "run").attempts[-1].state(NOW) == state  # what `watch` says
    assert (found.eta_seconds is None) == (state != "training")


def test_every_end_reason_has_a_state():
    assert {RunState(reason.run_state) for reason in EndReason} == {
        RunState.FINISHED, RunState.STOPPED, RunState.PREEMPTED, RunState.FAILED,
    }  # fmt: skip


def test_a_resumed_run_is_at_its_checkpoint(tmp_path: Path):
    resumed = (start("b", 2), event("ready", 45, "b", total_steps=1000))
    write(tmp_path / "run", *TRAINING, event("stop", 50, reason="preempted"), *resumed)
    (found,) = summarise_runs(tmp_path, NOW)
    assert (found.state, found.step, found.attempt) == (RunState.TRAINING, 45, 2)


def test_a_run_without_a_sign_is_silent(tmp_path: Path):
    write(tmp_path / "run", start(age=5000), event("ready", age=4900, total_steps=10), row(5, age=4000))
    assert [run.state for run in summarise_runs(tmp_path, NOW)] == [RunState.SILENT]


def test_a_killed_process_of_this_machine_is_noticed_at_once(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name, pid in (("killed", ended.pid), ("alive", os.getpid())):
        begun = start(host=socket.gethostname(), pid=pid)
        write(tmp_path / name, begun, *TRAINING[1:])
    states = {run.name: (run.state, run.fault) for run in summarise_runs(tmp_path, NOW)}
    assert states["alive"] == (RunState.TRAINING, "")
    assert states["killed"] == (RunState.FAILED, f"killed: process {ended.pid} ended without a message")


def test_damaged_files_lose_only_what_is_damaged(tmp_path: Path):
    run = write(tmp_path / "torn", *TRAINING)
    with (run / "events.jsonl").open("ab") as events, (run / "metrics.jsonl").open("ab") as metrics:
        events.write(b'{"kind": 3}\n\xff\xfe\n[1]\n{"kind": "ready", "step": "x"}\n{"attempt"')
        metrics.write(b"\0" * 70_000 + b'\n{"step": 1e400, "loss": []}\n{"step": 60, "lo')
    write(tmp_path / "no_events")
    write(tmp_path / "noise", *TRAINING)
    (tmp_path / "noise/metrics.jsonl").write_bytes(os.urandom(100_000))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped/metrics.jsonl")
    (tmp_path / "piped/events.jsonl").write_text(json.dumps(start()) + "\n")
    found = {run.name: run for run in summarise_runs(tmp_path, NOW)}
    assert (found["torn"].step, found["torn"].state) == (50, RunState.TRAINING)
    assert (found["noise"].step, found["noise"].state) == (0, RunState.TRAINING)
    assert (found["no_events"].state, found["no_events"].note) == (RunState.SILENT, "events.jsonl has no valid event")
    assert found["piped"].state is RunState.STARTING


def test_only_the_ends_of_files_are_read(tmp_path: Path):
    for number in range(200):
        run = write(tmp_path / f"group{number % 3}/run{number}", *TRAINING)
        rows = (run / "metrics.jsonl").read_bytes()
        with (run / "metrics.jsonl").open("wb") as file:  # 8 GB of nothing before the rows, which take no room
            file.seek(8 << 30)
            file.write(b"\n" + rows)
        with (run / "events.jsonl").open("a") as file:
            saved = "".join(json.dumps(event("checkpoint", step, blocking=0.1)) + "\n" for step in range(800))
            file.write(saved)
    began = time.monotonic()
    found = summarise_runs(tmp_path, NOW)
    assert len(found) == 200
    assert all((run.state, run.step, run.total_steps) == (RunState.TRAINING, 50, 1000) for run in found)
    assert time.monotonic() - began < 30  # 1,600 GB would take hours


def test_active_runs_come_first_then_the_newest_then_by_name(tmp_path: Path):
    for name, age in (("b old", 90), ("e old", 90), ("c new", 20), ("a oldest", 99)):
        write(tmp_path / name, start(age=age), event("finish", 10, age=age))
    write(tmp_path / "d active", start(age=200), event("ready", total_steps=10, age=195), row(5, age=190))
    write(tmp_path / "f queued", start(age=300), event("submitted", attempt="", age=250))
    found = [run.name for run in summarise_runs(tmp_path, NOW)]
    assert found == ["d active", "f queued", "c new", "b old", "e old", "a oldest"]


def test_runs_are_found_below_folders_and_behind_links(tmp_path: Path):
    inner = write(tmp_path / "runs/a/b", *TRAINING)
    (inner / "checkpoints/step-1").mkdir(parents=True)
    elsewhere = write(tmp_path / "elsewhere/run", *TRAINING)
    (tmp_path / "runs/linked").symlink_to(elsewhere)
    (tmp_path / "runs/loop").symlink_to(tmp_path / "runs")
    write(tmp_path / "runs/.hidden/run", *TRAINING)
    assert find_runs(tmp_path / "runs") == [inner, tmp_path / "runs/linked"]
    assert find_runs(inner) == [inner]
    assert [run.name for run in summarise_runs(inner, NOW)] == ["b"]

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, drop_repeated, read_rows
from slurm import code_snapshot, demo
from slurm.job_state import JobRecord
from tests.runs.test_history import event, row, start
from tests.runs.test_summary import write
from tests.slurm.fakes.jobs import ROOT


def _demo(code: Path) -> str:
    command, environment = [sys.executable, "-m", "motionmae", "demo"], {**os.environ, "COLUMNS": "120"}
    output = code / "demo.log"
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=code, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        assert process.wait(500) == 0, output.read_text()
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the demo has not ended; its last lines:\n{output.read_text()[-3000:]}")
    return output.read_text()


def _cell(output: str, name: str) -> str:
    """The second cell of the row called ``name`` in the table that ends the demo."""
    row = next(line for line in output.splitlines() if line.startswith(f"│ {name} "))
    return row.split("│")[2].strip()


@pytest.mark.long
def test_the_demo_trains_is_preempted_loses_nothing_and_starts_from_what_is_there(tmp_path: Path) -> None:
    code = code_snapshot.collect(ROOT).write(tmp_path)
    config = code / "configs" / "demo.yaml"
    config.write_text(config.read_text().replace("{epochs: 420, warmup_epochs: 25}", "{epochs: 16, warmup_epochs: 2}"))
    first = _demo(code)

    shown = {name: _cell(first, name) for name in ("videos sharded", "quarantined", "steps", "preempted", "steps lost")}
    samples = json.loads((code / "data/demo/shards/manifest.json").read_text())["samples"]
    steps = samples // 8 * 16
    assert shown["videos sharded"].startswith(f"{samples} in ")
    assert samples >= 56
    assert shown["quarantined"].startswith("1 (")
    assert "damaged.mp4" in (code / "data/demo/shards/quarantine.jsonl").read_text()
    assert (shown["steps"], shown["steps lost"]) == (str(steps), "0")

    run = RunFolder(code / "runs/demo")
    events = list(read_rows(run.events))
    stopped = next(row for row in events if row["kind"] == Kind.PREEMPTION.value)["step"]
    assert steps // 2 <= stopped < steps
    logged = [row["step"] for row in drop_repeated(read_rows(run.metrics))]
    assert logged == sorted({*range(20, steps, 20), stopped, steps})
    assert shown["preempted"].startswith(f"at step {stopped};")
    with Image.open(run.path / "reconstruction.png") as picture:
        assert min(picture.size) > 200
    report = (run.path / "report.html").read_text()
    assert "predicting the mean" in report
    assert "data:image/png;base64," in report

    again = _demo(code)
    assert {name: _cell(again, name) for name in shown} == shown
    assert _cell(again, "loss, time head") == _cell(first, "loss, time head")
    assert [row["kind"] for row in read_rows(run.events)].count(Kind.PREEMPTION.value) == 1


@pytest.mark.parametrize(("ends", "status"), [("exit 1", 1), ("exit 2", 2), ("kill -KILL $$", -9)])
def test_the_demo_ends_with_the_first_step_that_fails(
    ends: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "PROGRAM", ("sh", "-c", f"echo $0 $1 >> steps; {ends}"))
    demo.VIDEOS.mkdir(parents=True)
    (demo.VIDEOS / "damaged.mp4").touch()
    assert demo.run(argparse.Namespace()) == 1
    assert Path("steps").read_text() == "shards toy\n"
    assert f"error: this step of the demo failed with status {status}: " in capsys.readouterr().out


def _write_results(preempted: bool) -> None:
    """A run of 40 steps, whose first attempt may be preempted at step 20."""
    demo.SHARDS.mkdir(parents=True)
    manifest = {"samples": 56, "shards": {"a.tar": 28, "b.tar": 28}, "quarantined": 3}
    (demo.SHARDS / "manifest.json").write_text(json.dumps(manifest))
    first = [start(100.0), event("ready", 110.0, total_steps=40), row(20, 150.0)]
    first += [event("preemption", 151.0, step=20), event("stop", 152.0, step=20, reason="preempted")]
    second = [start(160.0, "b"), event("ready", 163.0, step=18, attempt="b", total_steps=40), row(40, 200.0, "b")]
    write(demo.RUN.path, *(first + second if preempted else [*first[:3], row(40, 190.0)]))
    losses = [
        {"head": "time", "steps": 40, "first": 0.9876, "last": 0.1234, "predicting_the_mean": 0.5555},
        {"head": "motion", "steps": 40, "first": 0.8, "last": 0.2, "predicting_the_mean": 0.4},
    ]
    demo.LOSSES.write_text(json.dumps(losses))


@pytest.mark.parametrize("preempted", [True, False])
def test_the_summary_shows_what_the_run_has_done(
    preempted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_results(preempted)
    names, values = (list(column.cells) for column in demo.summary(61.4).columns)
    shown = dict(zip(map(str, names), map(str, values), strict=True))
    stops = {"preempted": "at step 20; training again 12 s later", "steps lost": "2"}  # 163 s - 151 s, 20 - 18
    assert shown == {
        "videos sharded": "56 in 2 shards", "quarantined": "3 (reasons: data/demo/shards/quarantine.jsonl)",
        "steps": "40", "loss, time head": "0.988 -> 0.123 (predicting the mean: 0.555)",
        "loss, motion head": "0.800 -> 0.200 (predicting the mean: 0.400)", **(stops if preempted else {}),
        "reconstructions": "runs/demo/reconstruction.png", "report": "runs/demo/report.html",
        "TensorBoard": f"tensorboard --logdir {demo.RUN.tensorboard}", "duration": "61 s",
    }  # fmt: skip


@pytest.mark.parametrize(("step", "preempts"), [(0, False), (19, False), (20, True), (21, True)])
def test_the_run_is_preempted_once_half_of_its_steps_are_done(
    step: int, preempts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not demo.preempt_halfway()  # before the run has begun
    with subprocess.Popen(["sleep", "60"]) as job:
        write(demo.RUN.path, start(100.0), event("ready", 110.0, total_steps=41), *([row(step, 150.0)] if step else []))
        JobRecord("local", str(job.pid), "log", "code", 1.0).write(demo.RUN.path)
        assert demo.preempt_halfway() is preempts
        if not preempts:
            job.kill()
        assert job.wait(30) == (-signal.SIGUSR2 if preempts else -signal.SIGKILL)
    write(demo.RUN.path, event("preemption", 151.0, step=step))
    assert demo.preempt_halfway()  # the job is gone: nobody is told a second time

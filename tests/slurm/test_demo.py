import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, drop_repeated, read_rows
from slurm import code_snapshot, demo
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

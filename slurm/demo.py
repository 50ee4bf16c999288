"""`motionmae demo`: run the whole pipeline on two CPU cores, through the commands that a user would type.

The demo renders videos (and adds real ones if an installed package ships some), makes shards, trains with two ranks,
preempts the run half-way by Slurm's signal, resumes it, and draws the results. Existing files are not made again.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from motionmae.commands.app import PROGRAM, Command
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, Row
from motionmae.runs.history import RunHistory
from slurm.job_state import JobRecord

VIDEOS = Path("data/demo/videos")
SHARDS = Path("data/demo/shards")
RUN = RunFolder(Path("runs/demo"))
PICTURE, CURVES, FIGURES = (RUN.path / name for name in ("reconstruction.png", "curves.png", "curves.json"))
SUBMIT = ["submit", "--cluster", "local", "--config", "demo", "--follow"]


def run(_: argparse.Namespace) -> int:
    started = time.monotonic()
    try:
        step("1/5 videos: rendered classes that differ in motion only, real clips, and one damaged file")
        command("shards", "toy", "--out", str(VIDEOS), "--train", "56", "--val", "14", "--real")
        damage_one_video()
        step("2/5 shards: every video is decoded once; unreadable videos are listed with the reason")
        videos = ("--videos", str(VIDEOS), "--split", "train")
        command("shards", "make", "folder", *videos, "--out", str(SHARDS))
        step("3/5 training on two ranks; half-way SIGUSR2 preempts the run, as Slurm would, and it resumes by itself")
        train()
        step("4/5 pictures")
        command("reconstruct", str(RUN.path), "--out", str(PICTURE))
        command("curves", str(RUN.path), "--out", str(CURVES), "--json", str(FIGURES))
    except subprocess.CalledProcessError as error:
        print(f"error: this step of the demo failed with status {error.returncode}: see its output above")
        return 1
    step("5/5 summary")
    Console().print(summary(time.monotonic() - started))
    return 0


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def command(*words: str) -> None:
    """Print a command as a user would type it, and run it."""
    print(f"$ motionmae {shlex.join(words)}", flush=True)
    subprocess.run([*PROGRAM, *words], check=True)


def damage_one_video() -> None:
    """Add a video without its header, which the quarantine will list."""
    damaged = VIDEOS / "damaged.mp4"
    if not damaged.exists():
        damaged.write_bytes(min(VIDEOS.glob("train/**/*.mp4")).read_bytes()[2000:])
        with (VIDEOS / "train.csv").open("a") as split_list:
            split_list.write(f"{damaged.name} -1\n")


def train() -> None:
    """Train to the end, and preempt the run once after half of its steps."""
    print(f"$ motionmae {shlex.join(SUBMIT)}", flush=True)
    with subprocess.Popen([*PROGRAM, *SUBMIT]) as follower:
        while follower.poll() is None:
            if half_way():
                preempt()
                break
            time.sleep(0.5)
        status = follower.wait()
    if status:
        raise subprocess.CalledProcessError(status, SUBMIT)


def half_way() -> bool:
    """Whether the run has done half of its steps and was not preempted yet."""
    history = RunHistory(RUN.path)
    if not history.total_steps or not history.rows or history.of(Kind.PREEMPTION):
        return False
    return history.rows[-1]["step"] >= history.total_steps // 2


def preempt() -> None:
    """Send SIGUSR2 to the local job's controller, as Slurm does at a preemption and before the time limit."""
    record = JobRecord.read(RUN.path)
    assert record is not None, "a run that has logged steps was submitted"
    print(f"$ kill -USR2 {record.job_id}", flush=True)
    os.kill(int(record.job_id), signal.SIGUSR2)


def preemption_rows(events: list[Row]) -> list[tuple[str, str]]:
    """Table rows with the step and the cost of the first preemption; empty if there was none."""
    kinds = [row["kind"] for row in events]
    if Kind.PREEMPTION.value not in kinds or Kind.RESUME.value not in kinds:
        return []
    saved = events[kinds.index(Kind.PREEMPTION.value)]
    later = [row for row in events if row["time"] > saved["time"]]
    resumed = next(row for row in later if row["kind"] == Kind.RESUME.value)
    ready = next(row for row in later if row["kind"] == Kind.READY.value)
    return [
        ("preempted", f"at step {saved['step']}; training again {ready['time'] - saved['time']:.0f} s later"),
        ("steps lost", str(saved["step"] - resumed["step"])),
    ]


def summary(seconds: float) -> Table:
    manifest = json.loads((SHARDS / "manifest.json").read_text())
    figures = json.loads(FIGURES.read_text())
    table = Table(show_header=False, title="MotionMAE demo", title_justify="left")
    table.add_row("videos sharded", f"{manifest['samples']} in {len(manifest['shards'])} shards")
    table.add_row("quarantined", f"{manifest['quarantined']} (reasons: {SHARDS / 'quarantine.jsonl'})")
    table.add_row("steps", str(figures[0]["steps"]))
    for row in figures:
        losses = f"{row['first']:.3f} -> {row['last']:.3f} (predicting the mean: {row['predicting_the_mean']:.3f})"
        table.add_row(f"loss, {row['head']} head", losses)
    for cells in preemption_rows(RunHistory(RUN.path).events):
        table.add_row(*cells)
    table.add_row("reconstructions", str(PICTURE))
    table.add_row("loss curves", str(CURVES))
    table.add_row("TensorBoard", f"tensorboard --logdir {RUN.tensorboard}")
    table.add_row("took", f"{seconds:.0f} s")
    return table


COMMAND = Command(
    lambda parser: None,
    run,
    description="Render and shard videos, train on them on two CPU cores, preempt and resume the run, and show it.\n"
    "The files go to data/demo and runs/demo in the working directory.",
)

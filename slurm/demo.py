"""`motionmae demo`: the whole path on two CPU cores, with the commands that a user would type."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from motionmae.commands.app import PROGRAM, Command
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind
from motionmae.runs.history import RunHistory
from motionmae.screen import Table, show
from motionmae.text import say
from slurm.job_state import JobRecord

VIDEOS, SHARDS = Path("data/demo/videos"), Path("data/demo/shards")
RUN = RunFolder(Path("runs/demo"))
PICTURE, REPORT, LOSSES = (RUN.path / name for name in ("reconstruction.png", "report.html", "losses.json"))


def run(_: argparse.Namespace) -> int:
    """Run the demo in the working directory."""
    started = time.monotonic()
    try:
        say()
        say("== 1/5 videos: rendered classes that differ only in motion, real clips, and one damaged file")
        command("shards", "toy", "--out", str(VIDEOS), "--train", "56", "--val", "14", "--real")
        if not (damaged := VIDEOS / "damaged.mp4").exists():  # a video without its headers
            damaged.write_bytes(min(VIDEOS.glob("train/**/*.mp4")).read_bytes()[2000:])
            with (VIDEOS / "train.csv").open("a") as split:
                split.write(f"{damaged.name} -1\n")
        say()
        say("== 2/5 shards: every video is decoded once; unreadable videos are listed with the reason")
        command("shards", "make", "folder", "--videos", str(VIDEOS), "--split", "train", "--out", str(SHARDS))
        say()
        say("== 3/5 training on two ranks; halfway SIGUSR2 preempts the run, as on Slurm, and the run resumes")
        command("submit", "--cluster", "local", "--config", "demo", "--follow", preempt=True)
        say()
        say("== 4/5 reconstructions and report")
        command("reconstruct", str(RUN.path), "--out", str(PICTURE))
        command("report", str(RUN.path), "--out", str(REPORT), "--json", str(LOSSES))
    except subprocess.CalledProcessError as error:
        say(f"error: this step of the demo failed with status {error.returncode}: see its output above")
        return 1
    say()
    say("== 5/5 summary")
    show(summary(time.monotonic() - started))
    return 0


def command(*argv: str, preempt: bool = False) -> None:
    """Print and run a command of motionmae; with ``preempt``, also preempt the submitted run halfway."""
    say(f"$ motionmae {shlex.join(argv)}")
    with subprocess.Popen([*PROGRAM, *argv]) as process:
        while preempt and process.poll() is None and not preempt_halfway():
            time.sleep(0.5)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)


def preempt_halfway() -> bool:
    """Preempt the run once half of its steps are done; return True if the run has been preempted."""
    history = RunHistory(RUN.path)
    if history.of(Kind.PREEMPTION):
        return True
    if not history.rows or not history.total_steps or history.rows[-1]["step"] < history.total_steps // 2:
        return False
    record = JobRecord.read(RUN.path)
    assert record is not None, "a submission writes job.json"
    say(f"$ kill -USR2 {record.job_id}")
    os.kill(int(record.job_id), signal.SIGUSR2)
    return True


def summary(seconds: float) -> Table:
    """Return the table that the demo prints at its end."""
    manifest, losses = (json.loads(path.read_text()) for path in (SHARDS / "manifest.json", LOSSES))
    history = RunHistory(RUN.path)
    table = Table(show_header=False, title="MotionMAE demo", title_justify="left")
    table.add_row("videos sharded", f"{manifest['samples']} in {len(manifest['shards'])} shards")
    table.add_row("quarantined", f"{manifest['quarantined']} (reasons: {SHARDS / 'quarantine.jsonl'})")
    table.add_row("steps", str(losses[0]["steps"]))
    for row in losses:
        mean = f"(predicting the mean: {row['predicting_the_mean']:.3f})"
        table.add_row(f"loss, {row['head']} head", f"{row['first']:.3f} -> {row['last']:.3f} {mean}")
    if preemptions := history.of(Kind.PREEMPTION):
        step, stopped = preemptions[0]["step"], preemptions[0]["time"]
        resumed = next(one for one in history.attempts if one.ready and one.ready > stopped)
        table.add_row("preempted", f"at step {step}; training again {(resumed.ready or 0) - stopped:.0f} s later")
        table.add_row("steps lost", str(step - resumed.first_step))
    table.add_row("reconstructions", str(PICTURE))
    table.add_row("report", str(REPORT))
    table.add_row("TensorBoard", f"tensorboard --logdir {RUN.tensorboard}")
    table.add_row("duration", f"{seconds:.0f} s")
    return table


_DESCRIPTION = """\
Render and shard videos, train on two CPU cores, preempt and resume the run, and show the results.
The files go to data/demo and runs/demo in the working directory. Existing results are reused."""
COMMAND = Command(lambda parser: None, run, description=_DESCRIPTION)

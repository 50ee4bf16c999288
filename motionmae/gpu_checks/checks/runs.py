"""Checks of whole runs, started as users start them: loader, kill and resume, preemption, another number of ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from motionmae.config import Config, config_yaml
from motionmae.data.profile_loader import profile_loader
from motionmae.gpu_checks.check import CheckError, Figures, NotRunError, Setting, require
from motionmae.gpu_checks.runner import ROOT, torchrun
from motionmae.gpu_checks.subjects import TINY, decoders, load, make_shards
from motionmae.json_text import JsonModel, load_json
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, Row
from motionmae.runs.history import RunHistory

_WAIT_SECONDS = 110  # for a run to get somewhere; the limits of the checks are a little longer
_POLL_SECONDS = 0.1
_MOST_DATA_WAIT = 0.05  # share of a step
_WARM_UP_ROWS = 5  # rows of metrics before the loader's queue is in balance
_LOSS_ERROR = 0.02  # between a step and its repetition after a resume, on a GPU not bitwise


class _Job(JsonModel, extra="ignore"):
    """Part of a run's job.json."""

    job_id: str
    exit_code: int | None = None


def run_config(setting: Setting, name: str, ranks: int = 1) -> Config:
    """Make shards, and return the config of a run of some seconds on them, on ``ranks`` ranks."""
    folder = setting.folder / name
    is_tiny = setting.quick or not setting.on_gpu
    steps, save = (32, 8) if is_tiny else (200, 40)
    overrides = ["log.every_steps=1", "log.tensorboard=false", f"checkpoint.every_steps={save}", "data.prefetch=8"]
    if is_tiny:
        config = load(TINY, setting, *overrides)
    else:
        overrides += [f"data.workers={decoders()}", "log.reconstruction_every_steps=0"]
        config = load("vitb_k400", setting, *overrides)
    batch = config.engine.micro_batch_size * ranks
    samples = 2 * batch
    make_shards(folder / "shards", config, samples)
    return config.updated(
        {
            "name": "run",
            "output_dir": str(folder),
            "data.shards": str(folder / "shards"),
            "optim.global_batch_size": batch,
            "optim.epochs": steps * batch // samples,
            "optim.warmup_epochs": 1,
        }
    )


def check_loader_and_kill(setting: Setting) -> Figures:
    """Train on real shards, kill the run without warning, and start it again."""
    config = run_config(setting, "loader_and_kill")
    figures = kill_and_resume(config, [sys.executable], [sys.executable])
    profile = profile_loader(config.data, config.clip, config.engine.micro_batch_size, seconds=1.5)
    figures |= {"clips_per_core": profile.clips_per_core, "loader_clips_per_second": profile.clips_per_second}
    figures["decoders"] = profile.decoders
    share = figures["data_wait_share"]
    require(share < _MOST_DATA_WAIT, f"a step waits {share:.0%} of its time for data: the loader is too slow", figures)
    return figures


def check_elasticity(setting: Setting) -> Figures:
    """Kill a run on all GPUs of this machine, and resume it on one."""
    if setting.ranks < 2:
        raise NotRunError("needs several GPUs")
    config = run_config(setting, "elasticity", setting.ranks)
    return kill_and_resume(config, torchrun(setting.ranks), [sys.executable])


def kill_and_resume(config: Config, first: Sequence[str], second: Sequence[str]) -> Figures:
    """Kill a run after its first checkpoint, run the same command to its end, and compare both attempts.

    Args:
        first: command line of the interpreter for the first attempt, of one or several ranks.
        second: the same for the second attempt.
    """
    command = _write_config(config)
    killed = _start([*first, *command], config, "first.log")
    _wait_for(lambda: _events(config, Kind.CHECKPOINT), killed, config, "first.log", "save a checkpoint")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = RunHistory(config.run_folder)  # reads the files at the first use, so use it before the next attempt
    saved, last = before.of(Kind.CHECKPOINT)[-1]["step"], before.rows[-1]["step"]
    status = _start([*second, *command], config, "second.log").wait(_WAIT_SECONDS)
    after = RunHistory(config.run_folder)
    figures: Figures = {
        **_times(before.rows, config),
        "killed_after_step": last,
        "newest_checkpoint": saved,
        "resumed_at_step": [row["step"] for row in after.of(Kind.RESUME)],
        "status": status,
        "start_s": [row["seconds"] for row in after.of(Kind.READY)],
    }
    require(status == 0, f"the second attempt ended with status {status}{_last_line(config, 'second.log')}", figures)
    resumed = figures["resumed_at_step"]  # a checkpoint may be newer than its event, which the kill prevents
    at_newest = len(resumed) == 1 and saved <= resumed[0] <= last
    require(at_newest, "the second attempt did not resume at the newest checkpoint", figures)
    steps = [row["step"] for row in after.rows]
    whole = steps == list(range(1, steps[-1] + 1)) and bool(after.of(Kind.FINISH))
    require(whole, "the run did not take every step exactly once", figures)
    errors = [abs(new["loss"] / old["loss"] - 1) for old, new in _repeated(before.rows, after.rows)]
    figures["largest_loss_error"] = max(errors, default=0.0)
    require(figures["largest_loss_error"] < _LOSS_ERROR, "the repeated steps have other losses", figures)
    return figures


def check_preemption(setting: Setting) -> Figures:
    """Submit a job to this machine, send its controller SIGUSR2, and wait for its end."""
    config = run_config(setting, "preemption")
    options = ["submit", "--cluster", "local", "--ntasks-per-node", "1", "--gpus-per-node", str(int(setting.on_gpu))]
    path = _write_config(config)[-1]
    submitting = _start([sys.executable, str(ROOT / "motionmae"), *options, "--config", path], config, "submit.log")
    if status := submitting.wait(_WAIT_SECONDS):
        raise CheckError(f"`motionmae submit` ended with status {status}{_last_line(config, 'submit.log')}", {})
    job = RunFolder(config.run_folder).job
    controller = int(load_json(job, _Job).job_id)
    _wait_for(lambda: RunHistory(config.run_folder).rows, None, config, "submit.log", "take a step")
    os.kill(controller, signal.SIGUSR2)
    _wait_for(lambda: load_json(job, _Job).exit_code is not None, None, config, "submit.log", "end")
    history = RunHistory(config.run_folder)
    preempted = [row["step"] for row in history.of(Kind.PREEMPTION)]
    resumed = [row["step"] for row in history.of(Kind.RESUME)]
    exit_code = load_json(job, _Job).exit_code
    figures: Figures = {"preempted_at_step": preempted, "resumed_at_step": resumed, "exit_code": exit_code}
    require(bool(preempted), "SIGUSR2 did not preempt the run", figures)
    require(exit_code == 0, f"the job ended with status {exit_code}", figures)
    require(resumed == preempted, "steps were lost between the preemption and the resumption", figures)
    require(bool(history.of(Kind.FINISH)), "the run did not finish", figures)
    return figures


def _write_config(config: Config) -> list[str]:
    """Write a config beside its run folder; return the arguments of python that train it."""
    path = Path(config.output_dir) / "config.yaml"
    path.write_text(config_yaml(config))
    return ["-m", "motionmae", "pretrain", "--config", str(path)]


def _start(command: list[str], config: Config, log: str) -> subprocess.Popen[bytes]:
    with (Path(config.output_dir) / log).open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, process_group=0)


def _wait_for(
    condition: Callable[[], object], process: subprocess.Popen[bytes] | None, config: Config, log: str, goal: str
) -> None:
    """Wait for ``condition``; raise CheckError if the process ends before, or the time is over."""
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if process is not None and process.poll() is not None:
            problem = f"the run ended with status {process.returncode} before it could {goal}"
            raise CheckError(f"{problem}{_last_line(config, log)}", {})
        if time.monotonic() > end:
            raise CheckError(f"the run did not {goal} within {_WAIT_SECONDS} s{_last_line(config, log)}", {})
        time.sleep(_POLL_SECONDS)


def _events(config: Config, kind: Kind) -> list[Row]:
    return RunHistory(config.run_folder).of(kind)


def _times(rows: list[Row], config: Config) -> Figures:
    """Return the mean times of a step after the warm-up."""
    measured = rows[_WARM_UP_ROWS:] or rows
    seconds = sum(row["step_seconds"] for row in measured)
    waited = sum(row["data_wait_seconds"] for row in measured)
    clips = config.optim.global_batch_size * config.data.repeated_sampling
    return {"clips_per_second": len(measured) * clips / seconds, "data_wait_share": waited / seconds}


def _repeated(before: list[Row], after: list[Row]) -> list[tuple[Row, Row]]:
    """Return the rows of steps that both attempts took."""
    new = {row["step"]: row for row in after}
    return [(row, new[row["step"]]) for row in before if row["step"] in new and row != new[row["step"]]]


def _last_line(config: Config, log: str) -> str:
    lines = (Path(config.output_dir) / log).read_text(errors="replace").strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""

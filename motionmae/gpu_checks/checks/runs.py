"""Checks of whole runs, started as users start them: loader, kill and resume, preemption, another number of ranks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from motionmae.config import Config, config_yaml
from motionmae.data.profile_loader import profile_loader
from motionmae.gpu_checks.check import CheckError, Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, decoders, load, make_shards
from motionmae.gpu_checks.runner import last_lines, torchrun
from motionmae.json_text import JsonModel, load_json
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, Row
from motionmae.runs.history import RunHistory

_WAIT_SECONDS = 180  # for a run to get to its next mark, times the setting's time_factor
_POLL_SECONDS = 0.1
_MOST_DATA_WAIT = 0.05  # share of a step
_WARM_UP_ROWS = 5  # rows of metrics before the loader's queue is in balance
_LOSS_ERROR = 0.02  # between a step and its repetition after a resume, on a GPU not bitwise


class _Job(JsonModel, extra="ignore"):
    """Part of a run's job.json."""

    job_id: str
    log: str
    exit_code: int | None = None


class _Command:
    """Started command line, its log, and the time that it may take to its next mark."""

    def __init__(self, command: Sequence[str], log: Path, setting: Setting) -> None:
        self.log, self._seconds = log, _WAIT_SECONDS * setting.time_factor
        with log.open("wb") as output:
            self._process = subprocess.Popen(list(command), stdout=output, stderr=subprocess.STDOUT, process_group=0)

    def wait(self) -> None:
        """Wait for the end; raise CheckError if it does not come, or with another status than 0."""
        self.wait_until(lambda: self._process.poll() is not None, "end")
        if status := self._process.returncode:
            raise CheckError(f"{self.log.stem} ended with status {status}{last_lines(self.log)}", {})

    def wait_until(self, condition: Callable[[], object], goal: str) -> None:
        """Wait for ``condition``; raise CheckError if the time is over, or the command has failed."""
        end = time.monotonic() + self._seconds
        while not condition():
            if self._process.poll():
                raise CheckError(f"{self.log.stem} failed before it could {goal}{last_lines(self.log)}", {})
            if time.monotonic() > end:
                raise CheckError(f"{self.log.stem} did not {goal} within {self._seconds} s{last_lines(self.log)}", {})
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """Kill the processes at once, ranks of torchrun included, as a node that loses its power."""
        with suppress(psutil.NoSuchProcess):
            this = psutil.Process(self._process.pid)
            for process in (*this.children(recursive=True), this):
                with suppress(psutil.Error):
                    process.kill()
        self._process.wait()


def run_config(setting: Setting, name: str, ranks: int = 1) -> Config:
    """Make shards, and return the config of a run of some seconds on them, on ``ranks`` ranks."""
    folder = setting.folder / name
    is_tiny = setting.quick or not setting.on_gpu
    steps, save = (200, 40) if setting.on_gpu else (48, 8)  # long enough for a signal to arrive in its middle
    overrides = ["log.every_steps=1", "log.tensorboard=false", f"checkpoint.every_steps={save}", "data.prefetch=8"]
    if is_tiny:
        config = load(TINY, setting, *overrides)
    else:
        overrides += [f"data.workers={decoders(ranks)}", "log.reconstruction_every_steps=0"]
        overrides += ["engine.micro_batch_size=8"] if ranks > 1 else []  # one rank will do the work of all
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
    figures = kill_and_resume(config, setting, [sys.executable])
    profile = profile_loader(config.data, config.clip, config.engine.micro_batch_size, seconds=1.5)
    figures |= {"clips_per_core": profile.clips_per_core, "loader_clips_per_second": profile.clips_per_second}
    figures["decoders"] = profile.decoders
    shutil.rmtree(config.output_dir, ignore_errors=True)  # some GB
    if not setting.on_gpu:
        return figures | {"not_run": ["whether the loader keeps up with a GPU"]}
    share = figures["data_wait_share"]
    require(share < _MOST_DATA_WAIT, f"a step waits {share:.0%} of its time for data: the loader is too slow", figures)
    return figures


def check_elasticity(setting: Setting) -> Figures:
    """Kill a run on all GPUs of this machine, and resume it on one."""
    return kill_and_resume(run_config(setting, "elasticity", setting.ranks), setting, torchrun(setting.ranks))


def kill_and_resume(config: Config, setting: Setting, first: Sequence[str]) -> Figures:
    """Kill a run after its first checkpoint, resume it as one process, and compare both attempts.

    ``first`` is the command line of the interpreter for the first attempt, of one or several ranks.
    """
    folder = Path(config.output_dir)
    command = ["-m", "motionmae", "pretrain", "--config", _write_config(config)]
    killed = _Command([*first, *command], folder / "first attempt.log", setting)
    killed.wait_until(lambda: RunHistory(config.run_folder).of(Kind.CHECKPOINT), "save a checkpoint")
    killed.kill()
    before = RunHistory(config.run_folder)  # reads the files at the first use, so use it before the next attempt
    saved, rows = before.of(Kind.CHECKPOINT)[-1]["step"], before.rows
    _Command([sys.executable, *command], folder / "second attempt.log", setting).wait()
    after = RunHistory(config.run_folder)
    figures: Figures = {
        **_times(rows, config),
        "killed_after_step": rows[-1]["step"],
        "newest_checkpoint": saved,
        "resumed_at_step": [row["step"] for row in after.of(Kind.RESUME)],
        "start_s": [row["seconds"] for row in after.of(Kind.READY)],
        "largest_loss_error": _loss_error(rows, after.rows),
    }
    resumed = figures["resumed_at_step"]  # a checkpoint may be newer than its event, which the kill prevents
    at_newest = len(resumed) == 1 and saved <= resumed[0] <= rows[-1]["step"]
    require(at_newest, "the second attempt did not resume at the newest checkpoint", figures)
    steps = [row["step"] for row in after.rows]
    whole = steps == list(range(1, steps[-1] + 1)) and bool(after.of(Kind.FINISH))
    require(whole, "the run did not take every step exactly once", figures)
    require(figures["largest_loss_error"] < _LOSS_ERROR, "the repeated steps have other losses", figures)
    return figures


def check_preemption(setting: Setting) -> Figures:
    """Submit a job to this machine, send its controller SIGUSR2, and wait for its end."""
    config = run_config(setting, "preemption")
    options = ["--cluster", "local", "--ntasks-per-node", "1", "--gpus-per-node", str(int(setting.on_gpu))]
    command = [sys.executable, "-m", "motionmae", "submit", *options, "--config", _write_config(config)]
    submitted = _Command(command, Path(config.output_dir) / "submit.log", setting)
    submitted.wait()
    path = RunFolder(config.run_folder).job
    job = load_json(path, _Job)
    submitted.log = Path(job.log)
    submitted.wait_until(lambda: RunHistory(config.run_folder).rows, "take a step")
    os.kill(int(job.job_id), signal.SIGUSR2)
    submitted.wait_until(lambda: load_json(path, _Job).exit_code is not None, "end")
    history, exit_code = RunHistory(config.run_folder), load_json(path, _Job).exit_code
    preempted = [row["step"] for row in history.of(Kind.PREEMPTION)]
    resumed = [row["step"] for row in history.of(Kind.RESUME)]
    figures: Figures = {"preempted_at_step": preempted, "resumed_at_step": resumed, "exit_code": exit_code}
    require(exit_code == 0, f"the job ended with status {exit_code}{last_lines(submitted.log)}", figures)
    require(bool(preempted), "SIGUSR2 did not preempt the run", figures)
    require(resumed == preempted, "steps were lost between the preemption and the resumption", figures)
    require(bool(history.of(Kind.FINISH)), "the run did not finish", figures)
    shutil.rmtree(config.output_dir, ignore_errors=True)  # the controller may still write its log
    return figures


def _write_config(config: Config) -> str:
    """Write a config beside its run folder, and return the path."""
    path = Path(config.output_dir) / "config.yaml"
    path.write_text(config_yaml(config))
    return str(path)


def _times(rows: list[Row], config: Config) -> Figures:
    """Return the mean times of a step after the warm-up."""
    measured = rows[_WARM_UP_ROWS:] or rows
    seconds = sum(row["step_seconds"] for row in measured)
    waited = sum(row["data_wait_seconds"] for row in measured)
    clips = config.optim.global_batch_size * config.data.repeated_sampling
    return {"clips_per_second": len(measured) * clips / seconds, "data_wait_share": waited / seconds}


def _loss_error(before: list[Row], after: list[Row]) -> float:
    """Return the largest relative difference between the losses of steps that both attempts took."""
    old = {row["step"]: row["loss"] for row in before}
    return max((abs(row["loss"] / old[row["step"]] - 1) for row in after if row["step"] in old), default=0.0)

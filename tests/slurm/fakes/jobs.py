"""Jobs without torch. Tests of the controller start their ranks in a second."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import submitit
from submitit.helpers import Checkpointable

from motionmae.config import load_config
from slurm import executors
from slurm.job_state import JobRecord, rank_zero_log, submission_lock
from slurm.local_executor import RESTARTS_VARIABLE, SIGNALS, DetachedLocalExecutor, stop_with_controller

ROOT = Path(__file__).resolve().parents[3]
Starter = Callable[..., JobRecord]
"""Type of the fixture `start`: :func:`start_job`."""


class Scripted(Checkpointable):
    """Each rank records its start in ``folder`` and performs the next of its ``acts``; the last act is repeated.

    Acts: ``done``, ``exit N``, and ``wait`` (for one of the two signals, then react like a training rank).
    """

    def __init__(self, folder: Path, acts: dict[int, list[str]]) -> None:
        self.folder, self.acts = folder, acts

    def __call__(self) -> str:
        environment = submitit.JobEnvironment()
        rank = environment.global_rank
        requeue = signal.getsignal(signal.SIGUSR2)
        received: list[int] = []
        for number in SIGNALS:
            signal.signal(number, lambda number, _: received.append(number))
        stop_with_controller()
        attempt = int(os.environ[RESTARTS_VARIABLE])
        with (self.folder / f"starts_{rank}").open("a") as file:
            file.write(f"{attempt}\n")
        act, _, number_text = self.acts[rank][min(attempt, len(self.acts[rank]) - 1)].partition(" ")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while act == "wait" and not received:
            time.sleep(0.05)
        if act == "exit":
            sys.exit(int(number_text))
        if received and rank != 0:
            sys.exit(0)
        if received == [signal.SIGUSR2]:
            requeue(signal.SIGUSR2, None)
        if received:
            sys.exit(143)
        return act


def start_job(run: Path, acts: dict[int, list[str]], **values: int) -> JobRecord:
    """Start a job like submit.py, but with :class:`Scripted` as its work."""
    config = load_config("demo")
    config = config.updated(
        {"launch": config.launch.model_copy(update={"ntasks_per_node": len(acts), "gpus_per_node": 0, **values})}
    )
    logs = executors.log_folder(run)
    with submission_lock(run) as lock:
        logs.mkdir(parents=True)
        environment = executors.job_environment(config, ROOT, "local")
        executor = DetachedLocalExecutor(logs, run, ROOT, config.launch, environment, lock)
        job_id = executor.submit(Scripted(run, acts)).job_id
        record = JobRecord("local", job_id, rank_zero_log(logs, job_id), str(ROOT), time.time())
        record.write(run)
    return record

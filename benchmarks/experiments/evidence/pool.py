"""Run a few jobs in parallel, each in a process with one thread, and show their progress."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.experiments.evidence.jobs import Job

ROOT = Path(__file__).resolve().parents[3]
_GRACE = 120  # seconds for a stopped run to save


class Pool:
    """Pool that starts jobs in order, each after the job that it needs, at most ``workers`` at a time."""

    def __init__(self, jobs: Sequence[Job], workers: int, logs: Path) -> None:
        self._workers, self._logs = workers, logs
        self._waiting = [job for job in jobs if not job.is_finished()]
        self._running: dict[Job, tuple[subprocess.Popen[bytes], TaskID | None]] = {}
        self._console = Console(soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=600,
            disable=not self._console.is_terminal,
        )
        self._all = self._bars.add_task("jobs", total=len(jobs), completed=len(jobs) - len(self._waiting))
        self.failed: list[Job] = []  # jobs that need failed jobs are not started

    def run(self) -> None:
        """Run all unfinished jobs."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._bars, self._stopping():
            while self._waiting or self._running:
                if free := self._workers - len(self._running):
                    for job in self._startable()[:free]:
                        self._start(job)
                if not self._running:
                    return  # the remaining jobs need failed ones
                time.sleep(1)
                for job in list(self._running):
                    self._poll(job)

    def _startable(self) -> list[Job]:
        return [job for job in self._waiting if job.needs is None or job.needs.is_finished()]

    def _start(self, job: Job) -> None:
        self._waiting.remove(job)
        self._console.print(f"start   {job.name}", highlight=False)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self._log(job).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "motionmae", *job.argv],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which then lets its runs save and stop
            )
        self._running[job] = process, None if job.is_test else self._bars.add_task(job.config.name, total=job.steps())

    def _poll(self, job: Job) -> None:
        process, bar = self._running[job]
        if bar is not None:
            self._bars.update(bar, completed=job.steps_done())
        if process.poll() is None:
            return
        del self._running[job]
        if bar is not None:
            self._bars.remove_task(bar)
        if job.is_finished():
            self._bars.advance(self._all)
            result = f": {job.top1():.1f} % top-1" if job.is_test else ""
            self._console.print(f"done    {job.name}{result}", highlight=False)
        else:
            self.failed.append(job)
            self._console.print(f"failed  {job.name} (status {process.returncode}): see {self._log(job)}")

    def _log(self, job: Job) -> Path:
        return self._logs / f"{job.config.name}.log"

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Treat SIGTERM as Ctrl-C. At the end, let the active runs save and stop."""
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            processes = [process for process, _ in self._running.values()]
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + _GRACE
            for process in processes:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

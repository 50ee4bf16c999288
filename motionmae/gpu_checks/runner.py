"""Run checks in worker processes: a check that fails, hangs or kills its process does not hide the others."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

import motionmae
from motionmae.config import EngineConfig
from motionmae.files import FileTail
from motionmae.gpu_checks.check import Check, CheckResult, Setting, Verdict
from motionmae.gpu_checks.worker import Job
from motionmae.json_text import parse_json

ROOT = Path(motionmae.__file__).resolve().parents[1]
MARK = "MOTIONMAE_DOCTOR"
"""Environment variable that identifies all processes of one check, also those that left its process group."""
_DETERMINISTIC = EngineConfig(deterministic=True).environment
"""Variable that torch's deterministic kernels need before cuBLAS starts. The default takes as much memory."""
_START_SECONDS = 60  # added to the limit of the first check of a process, for its imports
_POLL_SECONDS = 0.05
_LEAST_SECONDS = 5  # of the total time, for any check
_KILLS = 5  # attempts: a process may start another while it is killed, and a hanging driver can make one immortal
_LOG_LINES = 4  # last lines of a process's log in a message
_OF_OTHER_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "SUBMITIT_", "PMI_", "PMIX_", "OMPI_")
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
_OF_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")


class Runner:
    """Runner of the checks within ``seconds`` of total time. ``report`` receives each result as soon as it is known."""

    def __init__(self, setting: Setting, seconds: float, report: Callable[[CheckResult], None]) -> None:
        self._setting, self._report = setting, report
        self._end = time.monotonic() + seconds
        self._processes = 0
        self._results: dict[str, CheckResult] = {}

    def run(self, checks: Sequence[Check]) -> list[CheckResult]:
        """Run the checks in order. A process runs several checks, and ends at the first that fails."""
        with _exiting_on_sigterm():
            for check in checks:
                if reason := self._reason_not_to_run(check):
                    self._add(_unfinished(check, reason, Verdict.NOT_RUN))
            while waiting := [check for check in checks if check.name not in self._results]:
                if failed := next(filter(self._has_failed, (check for check in checks if check.essential)), None):
                    self._add(_unfinished(waiting[0], f"{failed.name} failed", Verdict.NOT_RUN))
                elif self._end - time.monotonic() < max(waiting[0].min_seconds, _LEAST_SECONDS):
                    problem = f"no time was left: add --only {waiting[0].name}"
                    self._add(_unfinished(waiting[0], problem, Verdict.NOT_RUN))
                else:
                    self._run_process(list(self._together(waiting)))
        return [self._results[check.name] for check in checks]

    def _add(self, result: CheckResult) -> None:
        self._results[result.name] = result
        self._report(result)

    def _has_failed(self, check: Check) -> bool:
        return check.name in self._results and self._results[check.name].verdict is Verdict.FAILED

    def _reason_not_to_run(self, check: Check) -> str:
        """Return why ``check`` cannot run in this setting; empty if it can."""
        if check.needs_gpus and self._setting.ranks < 2:
            return "needs several GPUs"
        if check.needs_gpu and not self._setting.on_gpu:
            return "needs a GPU"
        return "left out by --quick" if check.only_full and self._setting.quick else ""

    def _together(self, checks: list[Check]) -> Iterator[Check]:
        """Yield the first check, and those after it that may run in the same process."""
        for number, check in enumerate(checks):
            own = (check.alone and self._setting.on_gpu) or check.on_each
            if number and own:
                return
            yield check
            if own:
                return

    def _run_process(self, checks: list[Check]) -> None:
        """Run checks in one process, and add the results of those that began, at least of the first."""
        self._processes += 1
        stem = self._setting.folder / f"process_{self._processes}"
        job, results, log = (stem.with_suffix(suffix) for suffix in (".json", ".jsonl", ".log"))
        functions = {check.name: check.function for check in checks}
        work = Job(checks=functions, setting=self._setting, results=results)
        job.write_text(work.model_dump_json())
        results.touch()
        mark = secrets.token_hex(8)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self._launcher(checks[0]), "-m", "motionmae.gpu_checks.worker", str(job)],
                env={**single_process_environment(os.environ), **_DETERMINISTIC, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            self._follow(process, checks, FileTail(results), log)
        finally:
            kill_marked(mark)
            process.wait()

    def _launcher(self, check: Check) -> list[str]:
        return torchrun(self._setting.ranks) if check.on_each else [sys.executable]

    def _follow(self, process: subprocess.Popen[bytes], checks: list[Check], tail: FileTail, log: Path) -> None:
        """Add results until the process has ended, a check exceeds its limit, or the total time is over."""
        began, extra = time.monotonic(), _START_SECONDS
        while True:
            ended = process.poll() is not None  # before the last look at the file
            for line in tail.new_text().splitlines():
                self._add(parse_json(line.encode(), CheckResult))
                began, extra = time.monotonic(), 0
            waiting = [check for check in checks if check.name not in self._results]
            if not waiting or any(self._has_failed(check) for check in checks):
                return  # the remaining checks get a new process
            check, seconds = waiting[0], time.monotonic() - began
            limit = self._setting.time_factor * (check.limit + extra)
            if ended or seconds > limit:
                how = f"ended with status {process.returncode}" if ended else f"did not end within {limit:.0f} s"
                self._add(_unfinished(check, f"its process {how}{last_lines(log)}", Verdict.FAILED, seconds))
                return
            if time.monotonic() > self._end:
                problem = f"the total time was over: add --only {check.name}"
                self._add(_unfinished(check, problem, Verdict.NOT_RUN, seconds))
                return
            time.sleep(_POLL_SECONDS)


@contextmanager
def _exiting_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, else the processes of a check would outlive this one."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unfinished(check: Check, problem: str, verdict: Verdict, seconds: float = 0.0) -> CheckResult:
    return CheckResult(name=check.name, verdict=verdict, seconds=round(seconds, 1), problem=problem)


def last_lines(log: Path) -> str:
    """Return the end of a log, to be appended to a message; empty if there is none."""
    with suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "".join(f"; {line[:300]}" for line in lines[-_LOG_LINES:])
    return ""


def torchrun(ranks: int) -> list[str]:
    """Return the command line that starts a program as ``ranks`` processes of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def single_process_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return ``variables`` for a process that is no rank of a launcher, with this project on its import path."""
    kept = {
        key: value
        for key, value in variables.items()
        if key not in (*_OF_RANKS, *_OF_RENDEZVOUS) and not key.startswith(_OF_OTHER_LAUNCHERS)
    }
    path = [str(ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    fixed = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    return {"OMP_NUM_THREADS": "1"} | kept | fixed  # one thread as in a job on GPUs (slurm/executors.py)


def kill_marked(mark: str) -> None:
    """Kill all processes that inherited ``mark``. The controller of a local job, for example, has its own session."""
    for _ in range(_KILLS):
        marked = [process for process in psutil.process_iter() if _has_mark(process, mark)]
        if not marked:
            return
        for process in marked:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(marked, timeout=2)


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False

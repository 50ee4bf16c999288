"""``--cluster local``: the same job on this machine, through submitit's LocalExecutor.

What submitit's own lacks for a training run, and this adds:

- the controller leaves the terminal's session and logs to a file, so a job outlives the shell that started it;
- USR2 reaches the ranks, at any moment of their life, as Slurm's preemption does (submitit's controller would die of
  it): ``kill -USR2 CONTROLLER`` preempts the run, ``kill -TERM CONTROLLER`` stops it;
- ranks whose controller was killed are told to stop, so that they do not train on in a folder that looks free;
- a rank that fails ends the others, as ``srun --kill-on-bad-exit`` does, in place of leaving them in a collective;
- a job may be requeued any number of times (submitit: 6), and its restarts are counted for the ranks;
- the run folder's lock is held for as long as the job lives, and the job's end is written into ``job.json``.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.core.utils import JobPaths
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller, LocalExecutor, LocalJob

from slurm.job_state import JobRecord

RESTARTS_VARIABLE = "MOTIONMAE_LOCAL_RESTARTS"
"""How often the local job was requeued: what SLURM_RESTART_COUNT is on Slurm."""
SIGNALS = frozenset({signal.SIGUSR2, signal.SIGTERM})
"""What the ranks answer themselves; blocked from their birth until they can."""
STRAGGLER_SECONDS = 20.0
"""How long the other ranks may take to end once one has failed."""
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class DetachedLocalExecutor(LocalExecutor):
    """Starts a job on this machine that outlives the process that submits it.

    Args:
        folder: where submitit keeps pickles and logs.
        run: run folder, whose lock and job.json are the job's.
        code: folder of the code snapshot: working directory and first import path.
        environment: variables for the ranks, on top of those of this process.
        lock: descriptor of the run folder's lock, inherited by the controller.
        max_num_timeout: time-outs after which the job is not requeued.
    """

    def __init__(
        self, folder: Path, run: Path, code: Path, environment: Mapping[str, str], lock: int, max_num_timeout: int
    ) -> None:
        super().__init__(folder, max_num_timeout=max_num_timeout)
        self._run, self._code, self._environment, self._lock = run, code, environment, lock

    @classmethod
    def name(cls) -> str:
        """Name of the plugin; a job's ranks find their environment by it."""
        return "local"

    def _submit_command(self, command: str) -> LocalJob:
        ranks, gpus = self.parameters["tasks_per_node"], self.parameters["gpus_per_node"]
        variables = dict(os.environ) | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self.parameters["timeout_min"]),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
        }
        if gpus == 0:  # else all are visible, and the engine picks by LOCAL_RANK
            variables["CUDA_VISIBLE_DEVICES"] = ""
        with (self.folder / "controller.log").open("ab") as log:
            controller = subprocess.Popen(
                [sys.executable, "-m", "slurm.local_executor", str(self.folder), str(self._run)],
                cwd=self._code,
                env=variables | dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self._lock],
            )
        return LocalJob(self.folder, str(controller.pid), tasks=list(range(ranks)), process=controller)


class LocalController(Controller):
    """Starts the ranks, hands signals on to them, requeues, and says how the job ended."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stopping = False
        for number in SIGNALS:
            signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, _: object) -> None:
        self._stopping = self._stopping or number == signal.SIGTERM  # even between two attempts
        self._forward_signal(signal.Signals(number))

    def start_tasks(self) -> None:
        """Start the ranks with the signals blocked: one that comes before a rank can answer it waits until it can."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start_tasks()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def wait(self, freq: int = 0) -> Sequence[int | None]:
        """Wait until all ranks have ended, or one has failed and the others had their time to follow.

        Returns the exit code of each rank; None for one that still runs. ``freq`` is submitit's polling rate, unused.
        """
        started = time.monotonic()
        time_up = started + self.timeout_s
        signal_at: float | None = time_up - self.signal_delay_s
        failed_at: float | None = None
        while True:
            codes = [task.poll() for task in self.tasks]
            now = time.monotonic()
            if failed_at is None and any(codes):
                failed_at = now
            overdue = failed_at is not None and now > failed_at + STRAGGLER_SECONDS
            if all(code is not None for code in codes) or overdue or now > time_up:
                return codes
            if signal_at is not None and now > signal_at:
                self._forward_signal(signal.SIGUSR2)
                signal_at = None
            time.sleep(_POLL_SECONDS)

    def run_to_end(self) -> int:
        """Run the job through all its attempts and return its exit status.

        0: every rank finished; otherwise that of the first rank that failed (128 + the number of a signal).
        """
        restarts = 0
        while True:
            os.environ[RESTARTS_VARIABLE] = str(restarts)
            try:
                self.start_tasks()
                codes = self.wait()
            finally:
                self.kill_tasks()
            if LOCAL_REQUEUE_RETURN_CODE not in codes or self._stopping:
                return _job_status(codes)
            restarts += 1
            print(f"requeued, restart {restarts}", flush=True)


def stop_with_controller() -> None:
    """Ask the kernel to send this rank SIGTERM when the controller dies (Linux only; elsewhere nothing)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _job_status(codes: Sequence[int | None]) -> int:
    """The job's exit status: a rank's own before that of one that a signal ended, which mostly follows from it."""
    own = [code for code in codes if code is not None and code > 0]
    killed = [128 - code for code in codes if code is not None and code < 0]
    hung = [124 for code in codes if code is None]
    return next(iter([*own, *killed, *hung]), 0)


def command_line(folder: Path, code: Path, ranks: int) -> str:
    """What a local submission runs, for people to read."""
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
    return f"cd {shlex.quote(str(code))} && {command}   # x {ranks} ranks"


def main(folder: Path, run: Path) -> int:
    """Be the controller of the job whose files lie in ``folder``, and note its end in the run folder."""
    started = time.time()
    status = LocalController(folder).run_to_end()
    record = JobRecord("local", str(os.getpid()), str(rank_log(folder, str(os.getpid()))), str(Path.cwd()), started)
    record.ended(status).write(run)
    print(f"ended with status {status}", flush=True)
    return status


def rank_log(folder: Path, job_id: str, rank: int = 0) -> Path:
    """What a rank prints, over all attempts of the job; the same on Slurm."""
    return Path(JobPaths(folder, job_id, rank).stdout)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

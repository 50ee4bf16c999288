"""``--cluster local``: run the job on this machine through submitit's LocalExecutor.

Added to submitit's executor:

- The controller runs in a separate session and logs to a file. The job outlives the shell that started it.
- ``kill -USR2 CONTROLLER`` preempts the run at any time, and ``kill -TERM CONTROLLER`` stops the run.
- If the controller is killed, the ranks stop. A run folder that looks free therefore has no running ranks.
- If a rank fails, the other ranks are ended, as with ``srun --kill-on-bad-exit``, before they hang in a collective.
- A job may be requeued any number of times (submitit: 6), and its ranks know the number of restarts.
- The job holds the run folder's lock, and writes its exit status to ``job.json``.
"""

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller, LocalExecutor, LocalJob

from motionmae.config import LaunchConfig
from motionmae.text import say
from slurm.job_state import JobRecord, rank_zero_log

RESTARTS_VARIABLE = "MOTIONMAE_LOCAL_RESTARTS"
"""Environment variable with the number of requeues of a local job, like SLURM_RESTART_COUNT on Slurm."""
SIGNALS = frozenset({signal.SIGUSR2, signal.SIGTERM})
"""Signals that the ranks handle. The signals are blocked until the handlers are installed."""
STRAGGLER_SECONDS = 20.0
"""Time that the other ranks have to end by themselves after one rank has failed."""
_POLL_SECONDS = 0.1


class DetachedLocalExecutor(LocalExecutor):
    """Executor of a job on this machine. The job outlives the submitting process.

    Args:
        folder: folder of the pickle and the logs.
        code: code snapshot; the working directory and the first import path of the job.
        environment: variables of the ranks, added to those of this process.
        lock: file descriptor of the run folder's lock; the controller inherits it.
    """

    def __init__(
        self, folder: Path, run: Path, code: Path, launch: LaunchConfig, environment: Mapping[str, str], lock: int
    ) -> None:
        super().__init__(folder, max_num_timeout=launch.max_timeouts)
        self._run, self._code, self._launch, self._environment, self._lock = run, code, launch, environment, lock
        self.update_parameters(timeout_min=launch.time)  # submitit needs it to tell a time limit from a preemption

    def _submit_command(self, command: str) -> LocalJob:
        ranks = self._launch.ntasks_per_node
        variables = dict(os.environ) | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self._launch.signal_seconds),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self._launch.time),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
        }
        if self._launch.gpus_per_node == 0:  # by default every GPU is visible, and the engine picks one by LOCAL_RANK
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
    """Controller of a local job: starts the ranks, forwards signals to them, and requeues the job."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stopping = False
        for number in SIGNALS:
            signal.signal(number, self._forward)

    def _forward(self, number: int, _: object) -> None:
        self._stopping |= number == signal.SIGTERM  # also between two attempts
        self._forward_signal(signal.Signals(number))

    def start_tasks(self) -> None:
        """Start the ranks with blocked signals: an early signal waits until a rank has installed its handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start_tasks()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def wait(self, freq: int = 0) -> Sequence[int | None]:
        """Wait until all ranks have ended, or STRAGGLER_SECONDS after the first failure.

        Returns the exit code of each rank, None for a running rank. ``freq``, submitit's polling rate, is unused.
        """
        deadline = time.monotonic() + self.timeout_s
        signal_at = deadline - self.signal_delay_s
        failed = False
        while True:
            codes = [task.poll() for task in self.tasks]
            now = time.monotonic()
            if any(codes) and not failed:
                failed, deadline = True, min(deadline, now + STRAGGLER_SECONDS)
            if all(code is not None for code in codes) or now > deadline:
                return codes
            if now > signal_at:
                self._forward_signal(signal.SIGUSR2)
                signal_at = math.inf
            time.sleep(_POLL_SECONDS)

    def run_to_end(self) -> int:
        """Run all attempts of the job and return its exit status.

        The status is 0 if every rank finished, else the first failed rank's status (128 + signal number if killed).
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
            say(f"requeued, restart {restarts}")


def stop_with_controller() -> None:
    """Let the kernel send SIGTERM to this rank when the controller dies (Linux only)."""
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


def _job_status(codes: Sequence[int | None]) -> int:
    """Return the job's exit status. A rank's own status takes precedence over a signal."""
    own = [code for code in codes if code and code > 0]
    killed = [128 - code for code in codes if code and code < 0]
    hung = [124 for code in codes if code is None]
    return [*own, *killed, *hung, 0][0]


def main(folder: Path, run: Path) -> int:
    """Run the controller of the job in ``folder`` and write its exit status to the run folder."""
    started = time.time()
    status = LocalController(folder).run_to_end()
    job_id = str(os.getpid())
    JobRecord("local", job_id, rank_zero_log(folder, job_id), str(Path.cwd()), started, status).write(run)
    say(f"ended with status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

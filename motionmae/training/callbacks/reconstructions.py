"""Pictures of what the heads rebuild, drawn from a run's checkpoints by a process beside training.

A process of its own and of low priority: it needs neither the device nor the other ranks, whatever ZeRO has cut up,
draws nothing from training's random generators, and whatever it dies of, training goes on.
"""

import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Row

logger = logging.getLogger(__name__)

LAST_SECONDS = 120.0
"""How long a finished run waits for its last picture."""

_SOURCE = Path(__file__).resolve().parents[3]


class ReconstructionCallback:
    """Draws ``RUN/reconstructions/step-N.png`` every so many steps; one at a time, rank 0's affair.

    Args:
        folder: of the run.
        every_steps: steps between pictures, which are drawn at the first checkpoint after; 0 draws none.
    """

    def __init__(self, folder: RunFolder, every_steps: int) -> None:
        self._folder, self._every = folder, every_steps
        drawn = [int(path.stem[5:]) for path in folder.reconstructions.glob("step-*.png") if path.stem[5:].isdecimal()]
        self._last = max(drawn, default=0)
        self._process: subprocess.Popen[bytes] | None = None
        self._step, self._began = 0, 0.0

    def checkpoint(self, step: int, is_last: bool = False) -> None:
        """A checkpoint of ``step`` was committed: draw it if a picture is due, or if it is the run's last.

        While another picture is being drawn, it is passed over.
        """
        due = self._every > 0 and (is_last or step - self._last >= self._every)
        if not due or step == self._last or self._process is not None:
            return
        self._last = step
        try:
            self._process = self._start(step)
        except OSError as error:  # a full disk, no process to be had
            logger.warning("no picture of step %d is drawn (%s); training goes on", step, error)
            return
        self._step, self._began = step, time.monotonic()

    def _start(self, step: int) -> "subprocess.Popen[bytes]":
        out = self._picture(step)
        out.parent.mkdir(exist_ok=True)
        command = ["reconstruct", self._folder.path, "--step", step, "--out", out]
        variables = {"PYTHONPATH": str(_SOURCE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "motionmae", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | variables,
                start_new_session=True,  # what a terminal sends is meant for training
            )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        return process

    def finished(self, patience: float = 0.0) -> Row | None:
        """What came of a picture, once, as soon as it is known: fields of the event ``picture``.

        ``step`` and ``seconds``, and ``path`` in the run folder or what went wrong as ``error``.

        Args:
            patience: seconds to wait for it.
        """
        if self._process is None:
            return None
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        self._process = None
        told: Row = {"step": self._step, "seconds": time.monotonic() - self._began}
        if status == 0:
            return told | {"path": str(self._picture(self._step).relative_to(self._folder.path))}
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return told | {"error": lines[-1] if lines else f"exit status {status}"}

    def close(self) -> None:
        """End what is under way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def _log(self) -> Path:
        return self._folder.logs / "reconstruct.log"

    def _picture(self, step: int) -> Path:
        return self._folder.reconstructions / f"step-{step:08d}.png"

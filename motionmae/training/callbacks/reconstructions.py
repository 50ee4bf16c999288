"""Pictures of reconstructed clips, drawn from a run's checkpoints by a separate process during training.

The process has a low priority until training ends. It needs neither the device nor the other ranks, and does not change
the random state of training. If the process fails, training continues.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from motionmae.runs.directory import RunFolder
from motionmae.runs.events import EventLog, Kind, Row
from motionmae.text import get_logger
from motionmae.training.callbacks.base import Callback

logger = get_logger(__name__)

LAST_SECONDS = 120.0  # longest time that a finished run waits for its last picture


class ReconstructionCallback(Callback):
    """Callback that draws ``RUN/reconstructions/step-N.png``, one at a time, and logs each picture in events.jsonl.

    Args:
        every_steps: steps between pictures, drawn from the next checkpoint; 0 on every rank that draws none.
    """

    def __init__(self, folder: RunFolder, every_steps: int, events: EventLog, log: Callable[[str], None]) -> None:
        self._folder, self._every, self._events, self._log = folder, every_steps, events, log
        self._log_file = folder.logs / "reconstruct.log"
        drawn = [int(path.stem[5:]) for path in folder.reconstructions.glob("step-*.png") if path.stem[5:].isdecimal()]
        self._last = max(drawn, default=0)
        self._process: subprocess.Popen[bytes] | None = None
        self._step, self._began = 0, 0.0

    def on_log(self, row: Row) -> None:
        self.record()

    def on_save(self, step: int) -> None:
        if step - self._last >= self._every:
            self.draw(step)

    def on_train_end(self, step: int) -> None:
        self.record(LAST_SECONDS)
        self.draw(step, niceness=0)
        self.record(LAST_SECONDS)

    def draw(self, step: int, niceness: int = 19) -> None:
        """Start to draw from the checkpoint of ``step``, unless its picture exists or a drawing is in progress."""
        if self._every == 0 or step == self._last or self._process is not None:
            return
        self._last = step
        try:
            self._process = self._start(step, niceness)
        except OSError as error:
            logger.warning("the picture of step %d cannot be drawn (%s); training continues", step, error)
            return
        self._step, self._began = step, time.monotonic()

    def record(self, timeout: float = 0.0) -> None:
        """Log the picture in progress if it is finished within ``timeout`` seconds."""
        if (fields := self.poll(timeout)) is None:
            return
        self._events.event(Kind.PICTURE, **fields)
        if "error" in fields:
            self._log(f"the picture of step {fields['step']} could not be drawn: {fields['error']}")

    def poll(self, timeout: float = 0.0) -> Row | None:
        """Return the event fields of a finished picture (step, seconds, path or error); None if there is none yet."""
        if self._process is None:
            return None
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        self._process = None
        fields: Row = {"step": self._step, "seconds": time.monotonic() - self._began}
        if status == 0:
            return fields | {"path": str(self._picture(self._step).relative_to(self._folder.path))}
        lines = self._log_file.read_text(errors="replace").strip().splitlines() if self._log_file.exists() else []
        return fields | {"error": lines[-1] if lines else f"exit status {status}"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self, step: int, niceness: int) -> "subprocess.Popen[bytes]":
        out = self._picture(step)
        out.parent.mkdir(exist_ok=True)
        command = ["reconstruct", str(self._folder.path), "--step", str(step), "--out", str(out)]
        source = Path(__file__).resolve().parents[3]
        variables = {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self._log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "motionmae", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | variables,
                start_new_session=True,  # a terminal's signals are meant for training
            )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
        return process

    def _picture(self, step: int) -> Path:
        return self._folder.reconstructions / f"step-{step:08d}.png"

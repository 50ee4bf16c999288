"""Base class of callbacks, and the callbacks that collect garbage and show progress."""

import gc
import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress

from motionmae.runs.events import Row
from motionmae.runs.formatting import describe_row
from motionmae.screen import TaskText, make_console
from motionmae.text import cell


class Callback:
    """Base of the trainer's callbacks. Every method does nothing unless a subclass overrides it.

    Every rank has the same callbacks. ``on_log`` and ``on_train_end`` run after the same step on every rank and may use
    collectives. ``on_save`` and ``close`` may not.
    """

    def on_train_start(self) -> None:
        """Run before the first step of the attempt."""

    def on_log(self, row: Row) -> None:
        """Run after a row of metrics is written, every ``log.every_steps``."""

    def on_save(self, step: int) -> None:
        """Run after the checkpoint of ``step`` is committed. The current step may be later."""

    def on_train_end(self, step: int) -> None:
        """Run after the last step is done and saved; not called if the run stops earlier."""

    def close(self) -> None:
        """Run at the end of the attempt, also after an error."""


class SynchronizedGc(Callback):
    """Callback that collects Python's garbage at each row of metrics, on all ranks at the same steps.

    By default each rank collects at a different step, and the other ranks wait in the next reduction. One collection of
    the half a million objects of torch and DeepSpeed takes 0.2 s. Objects that exist at the start of training are
    excluded (``gc.freeze``), and a collection then takes almost no time.
    """

    def __init__(self) -> None:
        self._active = self._was_enabled = False

    def on_train_start(self) -> None:
        self._active, self._was_enabled = True, gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_log(self, row: Row) -> None:
        gc.collect()

    def on_train_end(self, step: int) -> None:
        self.close()

    def close(self) -> None:
        if self._active:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()
        self._active = False


class ProgressLine(Callback):
    """Callback that shows rows of metrics and messages, in a bar on a terminal, and in plain lines in a log file."""

    def __init__(self, total_steps: int, enabled: bool) -> None:
        self._total, self._enabled = total_steps, enabled
        self._console = make_console(file=sys.stdout, soft_wrap=True)
        self._seconds: float | None = None  # of a step, exponential moving average
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TaskText())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=total_steps)
            self._bar.start()

    def on_log(self, row: Row) -> None:
        seconds = row["step_seconds"]
        self._seconds = seconds if self._seconds is None else 0.8 * self._seconds + 0.2 * seconds
        text = describe_row(row, seconds_left=(self._total - row["step"]) * self._seconds)
        if self._bar:
            self._bar.update(self._task, completed=row["step"], description=text)
        else:
            self.log(f"step {row['step']}/{self._total}  {text}")

    def log(self, message: str) -> None:
        """Print a message, above the bar if there is one."""
        if self._enabled:
            self._console.print(cell(message))

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

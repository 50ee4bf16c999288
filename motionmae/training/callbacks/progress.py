"""Progress of training: a bar on a terminal, plain lines in a log file."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from motionmae.runs.events import Row
from motionmae.runs.formatting import describe_row
from motionmae.training.callbacks.base import Callback


class ProgressLine(Callback):
    """Callback that shows rows of metrics and messages, on rank 0 only."""

    def __init__(self, total_steps: int, enabled: bool) -> None:
        self._total, self._enabled = total_steps, enabled
        self._console = Console(file=sys.stdout, soft_wrap=True)
        self._seconds: float | None = None  # of a step, exponential moving average
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"))
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
            self._console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

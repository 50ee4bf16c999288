"""How far the run is, for people: a bar on a terminal, plain lines in a log file."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from motionmae.runs.events import Row
from motionmae.runs.formatting import describe_row


class ProgressLine:
    """Shows metrics rows as they come; silent on every rank but the first."""

    def __init__(self, total: int, enabled: bool) -> None:
        self._total, self._enabled = total, enabled
        self._console = Console(file=sys.stdout, soft_wrap=True)
        self._seconds: float | None = None
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def show(self, row: Row) -> None:
        """Show a metrics row."""
        seconds = row["step_seconds"]
        self._seconds = seconds if self._seconds is None else 0.8 * self._seconds + 0.2 * seconds
        left = (self._total - row["step"]) * self._seconds
        text = describe_row(row, left)
        if self._bar:
            self._bar.update(self._task, completed=row["step"], description=text)
        else:
            self.say(f"step {row['step']}/{self._total}  {text}")

    def say(self, sentence: str) -> None:
        """Print a sentence, above the bar if there is one."""
        if self._enabled:
            self._console.print(sentence, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()

"""How far the run is, for people: a bar on a terminal, plain lines in a log file."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from motionmae.runs.events import Row


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


def describe_row(row: Row, seconds_left: float) -> str:
    """A metrics row on one line, with the time that is left."""
    wait = row["data_wait_seconds"] / max(row["step_seconds"], 1e-9)
    parts = ", ".join(f"{key[5:]} {value:.4f}" for key, value in row.items() if key.startswith("loss_"))
    return (
        f"epoch {row['epoch']:.2f}  "
        f"loss {row['loss']:.4f}{f' ({parts})' if parts else ''}  "
        f"lr {row['lr']:.2e}  "
        f"{row['clips_per_second']:.1f} clips/s  data wait {wait:.0%}  {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: ``2 d 03 h``, ``3 h 07 min``, ``4 min 09 s``, ``12 s``."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"

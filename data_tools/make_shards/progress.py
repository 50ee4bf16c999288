"""What a person sees while shards are made: a bar on a terminal, nothing elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_tools.make_shards.write import Counts


class ProgressBar:
    """Videos done of all, rate, bytes, quarantined, time left."""

    def __init__(self, name: str, videos: int):
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}  {task.fields[size]}  {task.fields[quarantined]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=(console := Console(stderr=True)),
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=videos, rate="", size="", quarantined="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def show(self, tally: Counts) -> None:
        """Show how far it is."""
        speed = self._bar.tasks[self._task].speed
        self._bar.update(
            self._task,
            completed=tally.videos,
            rate=f"{speed:.1f} videos/s" if speed else "",
            size=decimal(tally.bytes),
            quarantined=f"{len(tally.quarantine)} quarantined" if tally.quarantine else "",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

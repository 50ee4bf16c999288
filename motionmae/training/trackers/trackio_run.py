"""Run in Trackio: on this machine, or on the server or Space that Trackio's environment variables name."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Row
from motionmae.text import excerpt
from motionmae.training.trackers.base import Tracker, new_id, numbers


class Trackio(Tracker):
    """Tracker for Trackio, which writes rows in a thread of its own, twice a second.

    Raises:
        UserError: trackio is not installed.
        OSError: Trackio refuses the run.
    """

    def __init__(self, config: Config, folder: RunFolder, run_id: str) -> None:
        try:
            import trackio
        except ImportError as error:
            raise UserError("log.trackio=true needs trackio: pip install 'motionmae[trackio]'") from error
        self._trackio, self._folder = trackio, folder.path
        self.run_id = run_id or f"{config.name}-{new_id()[:6]}"  # Trackio finds a run by its name
        self._trackio_run = self._call(
            trackio.init,
            project=config.log.trackio_project,
            name=self.run_id,
            config=config.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.stored_step = self._trackio_run._next_step - 1  # init has asked for it, and has no public name for it

    def picture(self, path: Path, step: int, title: str) -> None:
        image = self._call(self._trackio.Image, str(self._folder / path), caption=f"step {step}")
        self._call(self._trackio_run.log, {title: image}, step=self.stored_step)

    def send(self, row: Row) -> None:
        self._call(self._trackio_run.log, numbers(row), step=row["step"])

    def close(self) -> None:
        self._call(self._trackio.finish)

    @staticmethod
    def _call(action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call Trackio without its messages, and turn its errors into an OSError, which never stops training."""
        try:
            with redirect_stdout(io.StringIO()):
                return action(*arguments, **options)
        except Exception as error:  # it raises its own, its database's and its client's
            raise OSError(f"{type(error).__name__}: {excerpt(error)}") from error

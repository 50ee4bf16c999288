"""Base of the trackers, the file that holds their run ids, and the replay of rows that a tracker lacks."""

import secrets
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.json_text import InvalidJsonError, load_json
from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Kind, Row, Sink, drop_repeated, read_rows
from motionmae.runs.row_schema import fault_of
from motionmae.text import get_logger

logger = get_logger(__name__)


class Tracker(Sink):
    """Sink that sends each logged step once, over all attempts of a run.

    Steps that a resumed run repeats, up to the last step that the tool stores, are not sent again: the tools cannot
    replace a point.
    """

    run_id: str
    """Id of the run in the tool, with which the next attempt continues it."""
    stored_step: int = 0
    """Last step that the tool stores."""

    @abstractmethod
    def send(self, row: Row) -> None:
        """Send a metrics row. Raises OSError if the tool refuses it."""

    def picture(self, path: Path, step: int, title: str) -> None:
        """Send a picture of the model after ``step``."""
        return

    def event(self, row: Row) -> None:
        if row["kind"] == Kind.PICTURE and "path" in row:
            self.picture(Path(row["path"]), row["step"], row.get("title", "reconstruction"))

    def metrics(self, row: Row) -> None:
        self._send_new(row)

    def _send_new(self, row: Row) -> None:
        if row["step"] > self.stored_step:
            self.send(row)
            self.stored_step = row["step"]

    def replay(self, metrics: Path, until: int) -> None:
        """Send the rows of ``metrics``, up to step ``until``, that the tool lacks."""
        lacking = (row for row in read_rows(metrics) if not fault_of(row, is_event=False) and row["step"] <= until)
        for row in drop_repeated(lacking):
            self._send_new(row)


Opener = Callable[[Config, RunFolder, str], Tracker]
"""Function that opens a tracker for the run id of earlier attempts, which is empty for a new run.

It raises UserError if a package is missing, and OSError if the tool does not answer.
"""


def open_tracker(name: str, opener: Opener, config: Config, folder: RunFolder, resumed_step: int) -> Tracker | None:
    """Open the tracker called ``name`` and send it the rows that it lacks.

    Raises UserError if a new run cannot be opened. A resumed run then trains without the tracker: its next attempt
    sends all rows.
    """
    ids = _read_ids(folder.trackers)
    known = ids.get(name, "") if resumed_step else ""
    try:
        try:
            tracker = opener(config, folder, known)
        except OSError as error:
            raise UserError(f"log.{name} could not start ({error}): correct its settings, or turn it off") from error
        if tracker.run_id != known:
            write_json(folder.trackers, {**ids, name: tracker.run_id})
        tracker.replay(folder.metrics, resumed_step)
    except (UserError, OSError) as error:
        if not resumed_step:
            raise UserError(str(error)) from error
        logger.warning("%s; training continues without it, and a later attempt sends all rows", error)
        return None
    return tracker


def numbers(row: Row) -> dict[str, float]:
    """Return the values of a metrics row to draw over its step."""
    return {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "time")}


def new_id() -> str:
    return secrets.token_hex(8)


def _read_ids(path: Path) -> Mapping[str, str]:
    with suppress(OSError, InvalidJsonError):  # damaged: the tools show a second run with all rows
        return load_json(path, dict[str, str])
    return {}

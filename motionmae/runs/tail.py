"""Reading on in the files of a run while it writes them."""

import json
from pathlib import Path

from motionmae.runs.directory import RunFolder
from motionmae.runs.events import Row


class JsonTail:
    """Hands on the rows of a JSON lines file that were added since the last call; torn lines are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def new_rows(self) -> list[Row]:
        """The rows whose lines have come to their end; none while there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        rows = []
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "time" in row:
                rows.append(row)
        return rows


class RunTail:
    """New events and metrics rows of a run folder, in the order of their times."""

    def __init__(self, run: Path) -> None:
        folder = RunFolder(run)
        self._files = [JsonTail(folder.events), JsonTail(folder.metrics)]

    def new_rows(self) -> list[Row]:
        """What was written since the last call."""
        return sorted((row for file in self._files for row in file.new_rows()), key=lambda row: row["time"])

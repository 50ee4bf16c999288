"""Target files of Prometheus's file-based service discovery (file_sd): one folder for all runs.

``FOLDER/RUN-NODE.json`` is replaced atomically, because Prometheus ignores a partly written file, and on a network
file system inotify would not announce the rest of the file. The target has no label for the host name: with this label,
a requeue that moves rank 0 would start new series for its counters, and increase() would lose the difference.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from motionmae.files import write_atomically


@dataclass(frozen=True)
class Target:
    """One node's exporter as a Prometheus target."""

    run: str
    node: int
    """Index of the node in the run."""
    address: str
    """HOST:PORT."""
    tls: bool = False

    def content(self) -> bytes:
        """Return the JSON text of the target file."""
        labels = {"run": self.run, "instance": f"{self.run}/{self.node}"}
        if self.tls:
            labels["__scheme__"] = "https"
        return json.dumps([{"targets": [self.address], "labels": labels}], indent=1).encode()

    def path(self, folder: Path) -> Path:
        """Return the path of the target file in ``folder``."""
        return folder / f"{self.run}-{self.node}.json"

    def publish(self, folder: Path) -> None:
        """Write the target file, and replace the file of an earlier attempt.

        Raises:
            OSError: if the file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(folder), self.content())

    def withdraw(self, folder: Path) -> None:
        """Delete the target file, unless a later attempt has replaced it."""
        path = self.path(folder)
        try:
            if path.read_bytes() == self.content():
                path.unlink()
        except FileNotFoundError:
            pass


def withdraw_surplus(folder: Path, run: str, nodes: int) -> None:
    """Delete target files of an earlier attempt of ``run`` that had more than ``nodes`` nodes."""
    for path in folder.glob(f"{run}-*.json"):
        number = path.stem.removeprefix(f"{run}-")
        if number.isdigit() and int(number) >= nodes:
            path.unlink(missing_ok=True)

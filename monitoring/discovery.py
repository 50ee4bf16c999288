"""The target files by which Prometheus finds a run's nodes (file_sd), in one folder for all runs.

``FOLDER/RUN-NODE.json``, one a node, written to a dotfile and renamed: Prometheus keeps the former targets when it
meets a torn file, and inotify does not cross the clients of a network file system. The host's name is no label of the
target: a requeue that moves rank 0 would turn its counters into other series, and increase() would lose the difference.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from motionmae.files import write_atomically


@dataclass(frozen=True)
class Target:
    """One node's exporter."""

    run: str
    node: int
    """Number of the node in the run."""
    address: str
    """HOST:PORT."""
    tls: bool = False

    def content(self) -> bytes:
        """What stands in the file."""
        labels = {"run": self.run, "instance": f"{self.run}/{self.node}"}
        if self.tls:
            labels["__scheme__"] = "https"
        return json.dumps([{"targets": [self.address], "labels": labels}], indent=1).encode()

    def path(self, folder: Path) -> Path:
        """Where it is published."""
        return folder / f"{self.run}-{self.node}.json"

    def publish(self, folder: Path) -> None:
        """Say where this node is found, in place of what an earlier attempt said.

        Raises:
            OSError: if it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(folder), self.content())

    def withdraw(self, folder: Path) -> None:
        """Remove the file, unless a later attempt has published its own meanwhile."""
        path = self.path(folder)
        try:
            if path.read_bytes() == self.content():
                path.unlink()
        except FileNotFoundError:
            pass


def withdraw_beyond(folder: Path, run: str, nodes: int) -> None:
    """Remove the files of nodes that an earlier attempt of ``run`` had and this one, of ``nodes``, has not."""
    for path in folder.glob(f"{run}-*.json"):
        number = path.stem.removeprefix(f"{run}-")
        if number.isdigit() and int(number) >= nodes:
            path.unlink(missing_ok=True)

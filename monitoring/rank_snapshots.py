"""What each rank of a node last said, in small files that the node's exporter reads.

::

    TMP/motionmae-UID/KEY/3.json    rank 3's; written to a temporary name and renamed, so never seen half

The folder lies on the node itself and belongs to the user alone. A rank that hangs leaves its file, whose age tells.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from motionmae.files import atomic_path

_FORGOTTEN = 7 * 86400.0
"""Seconds without a new snapshot after which nobody needs a job's folder."""
Sample = tuple[str, dict[str, str], float]
"""Name of a metric, label values, value."""


@dataclass(frozen=True)
class Snapshot:
    """The values of one rank."""

    rank: int
    pid: int
    attempt: str
    time: float
    """When they were written, in seconds since the epoch."""
    samples: list[Sample]
    histogram: list[int] = field(default_factory=list)
    """Steps by bucket of catalogue.STEP_BUCKETS, the last one for all beyond; empty on ranks but 0."""
    histogram_sum: float = 0.0

    def write(self, folder: Path) -> None:
        """Put it in place of the rank's former one. Not synced: it is of no use to the next boot.

        Raises:
            OSError: if it cannot be written.
        """
        with atomic_path(folder / f"{self.rank}.json", durable=False) as temporary:
            temporary.write_text(json.dumps(asdict(self)))


def node_folder(key: str) -> Path:
    """The folder of the job ``key`` on this node, made if need be.

    Raises:
        OSError: if it cannot be made, or somebody else has made it.
    """
    mine = Path(tempfile.gettempdir()) / f"motionmae-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    status = mine.lstat()
    if status.st_uid != os.getuid() or mine.is_symlink() or status.st_mode & 0o022:
        raise PermissionError(f"{mine} is not this user's own folder")
    folder = mine / key
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def clear(folder: Path) -> None:
    """Remove what an earlier attempt left here, and what is left of jobs that ended on this node long ago."""
    for path in [*folder.glob("*.json"), *folder.glob("*.tmp")]:
        path.unlink(missing_ok=True)
    for other in folder.parent.iterdir():
        if other.stat().st_mtime < time.time() - _FORGOTTEN:
            shutil.rmtree(other, ignore_errors=True)


def read_all(folder: Path) -> Iterator[Snapshot]:
    """The snapshots of a folder by rank; what is no snapshot is passed over."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.name.zfill(20)):
        try:
            fields = json.loads(path.read_text())
            yield Snapshot(
                **{**fields, "samples": [(name, labels, value) for name, labels, value in fields["samples"]]}
            )
        except (OSError, ValueError, TypeError, KeyError):
            continue

"""Snapshots of the ranks' metric values: small files of a node that the node's exporter reads.

::

    TMP/motionmae-UID/KEY/3.json    values of rank 3, replaced atomically

The folder is local to the node and private to the user. The file of a hanging rank stays, and its age shows the hang.
"""

import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from motionmae.files import matching

_OURS = re.compile(r"\d+\.json(?:\.tmp)?")
_EXPIRY_SECONDS = 7 * 86400.0  # age at which the folder of another job is deleted
_JOB_FOLDER = re.compile(r".+-[0-9a-f]{12}")  # of exporter_process.job_key
Sample = tuple[str, dict[str, str], float]
"""Name of a metric, label values, value."""


@dataclass(frozen=True)
class Snapshot:
    """Metric values of one rank."""

    rank: int
    pid: int
    attempt: str
    time: float  # time of writing, in seconds since the epoch
    samples: list[Sample]
    histogram: list[int] = field(default_factory=list)
    """Steps by bucket of STEP_BUCKETS, with one more bucket for longer steps; empty on ranks other than 0."""
    histogram_sum: float = 0.0

    def write(self, folder: Path) -> None:
        """Replace the rank's earlier snapshot. The file is not flushed, because it is useless after a reboot.

        Raises:
            OSError: if the file cannot be written.
        """
        path = folder / f"{self.rank}.json"
        temporary = path.with_name(f"{path.name}.tmp")  # the only writer needs no lock, as atomic_path takes one
        temporary.write_text(json.dumps(vars(self)))
        temporary.replace(path)


def node_folder(key: str) -> Path:
    """Return the snapshot folder of the job ``key`` on this node; create the folder if it is absent.

    Raises:
        OSError: if the folder cannot be created, or belongs to another user.
    """
    root = Path(tempfile.gettempdir()) / f"motionmae-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if status.st_uid != os.getuid() or root.is_symlink() or status.st_mode & 0o022:
        raise PermissionError(f"{root} is not a private folder of this user: delete it, or set TMPDIR")
    folder = root / key
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def clear(folder: Path) -> None:
    """Delete snapshots of earlier attempts of this job, and folders of snapshots of other jobs older than a week."""
    _delete_snapshots(folder)
    for other in folder.parent.iterdir():
        status = other.lstat()
        is_job = _JOB_FOLDER.fullmatch(other.name) and stat.S_ISDIR(status.st_mode)
        if is_job and status.st_mtime < time.time() - _EXPIRY_SECONDS:
            with suppress(OSError):  # another job deletes it at the same time
                found = list(other.iterdir())
                if found and all(_OURS.fullmatch(path.name) for path in found):
                    _delete_snapshots(other)
                    other.rmdir()


def _delete_snapshots(folder: Path) -> None:
    for path in matching(folder, _OURS):
        path.unlink(missing_ok=True)


def read_all(folder: Path) -> Iterator[Snapshot]:
    """Yield the snapshots of a folder in order of rank. Other files are skipped."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.name.zfill(20)):
        try:
            yield Snapshot(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue

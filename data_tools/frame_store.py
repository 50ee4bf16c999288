"""The encoded frames of one sample, in memory or in a temporary file."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from tempfile import SpooledTemporaryFile

MEMORY_BYTES = 64 << 20
"""Limit on the bytes in memory. A sample of Kinetics has 6 MB."""


class FrameStore(Collection[bytes]):
    """Frames in order. Beyond :data:`MEMORY_BYTES` they are kept in a file without a name in ``folder``.

    The file is on the disk of the shards, because /tmp may be in memory. It raises OSError if this disk is full.
    Without ``folder``, all frames are in memory.
    """

    def __init__(self, folder: Path | None):
        self._folder = str(folder) if folder else None
        self._open()

    def _open(self) -> None:
        self._ends = [0]
        limit = MEMORY_BYTES if self._folder else 0  # 0: none
        self._file = SpooledTemporaryFile(limit, dir=self._folder)  # noqa: SIM115 - open until clear()

    def clear(self) -> None:
        """Remove all frames, and free their memory and disk."""
        self._file.close()
        self._open()

    def extend(self, frames: Sequence[bytes]) -> None:
        self._ends.extend(itertools.accumulate(map(len, frames), initial=self._ends.pop()))
        self._file.seek(0, 2)
        self._file.writelines(frames)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self._ends[-1]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[bytes]:
        for start, end in itertools.pairwise(self._ends):
            self._file.seek(start)
            yield self._file.read(end - start)

    def __contains__(self, frame: object) -> bool:
        return any(one == frame for one in self)

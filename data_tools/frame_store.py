"""The encoded frames of one sample, in memory or in a temporary file."""

import itertools
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

MEMORY_BYTES = 64 << 20
"""Limit on the bytes in memory. A sample of Kinetics has 6 MB."""


class FrameStore(Collection[bytes]):
    """Frames in order. Beyond :data:`MEMORY_BYTES` they are kept in a file without a name in ``folder``.

    The file is on the disk of the shards, because /tmp may be in memory. It raises OSError if this disk is full.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._frames: list[bytes] = []  # in memory
        self._file: IO[bytes] | None = None
        self._ends = [0]

    def extend(self, frames: Sequence[bytes]) -> None:
        self._ends.extend(itertools.accumulate(map(len, frames), initial=self._ends.pop()))
        if self._file is None and (self._folder is None or self._ends[-1] <= MEMORY_BYTES):
            self._frames.extend(frames)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - open until close()
            self._file.writelines(self._frames)
            self._frames = []
        self._file.seek(0, 2)
        self._file.writelines(frames)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self._ends[-1]

    def clear(self) -> None:
        """Remove all frames, and free their memory and disk."""
        self._frames, self._ends = [], [0]
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[bytes]:
        if self._file is None:
            yield from self._frames
            return
        for start, end in itertools.pairwise(self._ends):
            self._file.seek(start)
            yield self._file.read(end - start)

    def __contains__(self, frame: object) -> bool:
        return any(one == frame for one in self)

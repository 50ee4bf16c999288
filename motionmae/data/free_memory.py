"""Check that the micro-batches of a loader fit in memory, before a run starts."""

from pathlib import Path

import psutil
from rich.filesize import decimal

from motionmae.errors import UserError

_CGROUPS = Path("/sys/fs/cgroup")
_IN_USE = 2  # micro-batches that the training step and the copy to the GPU hold


def check_buffers_fit(micro_batch_bytes: int, prefetch: int, free: int | None = None) -> None:
    """Raise UserError if the micro-batches of a rank need more memory than is ``free`` (default: on this machine).

    They are anonymous shared memory (memfd), which the size of /dev/shm does not limit. Linux gives such memory at its
    first use, so that a lack of it would kill a process in the middle of a run.
    """
    free = free_bytes() if free is None else free
    needed = (prefetch + _IN_USE) * micro_batch_bytes
    if needed > free:
        raise UserError(
            f"the loader needs {needed} bytes of shared memory ({prefetch} + {_IN_USE} micro-batches of "
            f"{decimal(micro_batch_bytes)}) and {free} are free: decrease data.prefetch, engine.micro_batch_size or "
            "data.repeated_sampling, or give the job more memory"
        )


def free_bytes(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory that this process may still take: of the machine, or of its control groups if that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return free
    names = [line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")]  # cgroup v2
    for name in names:
        folder = root / name
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                free = min(free, _left_in(group, free))
    return max(0, free)


def _left_in(group: Path, otherwise: int) -> int:
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        cache = sum(int(value) for name, value in lines if name in ("inactive_file", "active_file"))
        return otherwise if limit == "max" else int(limit) - used + cache
    except (OSError, ValueError):  # no control group with a limit, as in most containers of cgroup v1
        return otherwise

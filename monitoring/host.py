"""Metrics of the node from /proc and its file systems. Values that cannot be read are left out."""

import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from monitoring.rank_snapshots import Sample


class Host:
    """Reader of this node's metrics.

    Args:
        runs: folder on the file system of the run directory.
    """

    def __init__(self, runs: Path) -> None:
        self._volumes = {"runs": runs, "scratch": Path(tempfile.gettempdir())}
        self._ticks = (0, 0)

    def samples(self) -> list[Sample]:
        """Return samples of the metrics in :data:`monitoring.metric_definitions.NODE`."""
        found: list[Sample] = [("node_info", {"node": socket.gethostname()}, 1)]
        with suppress(OSError, ValueError, KeyError):
            memory = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
            found.append(("memory_available_bytes", {}, int(memory["MemAvailable"]) * 1024))
            found.append(("memory_total_bytes", {}, int(memory["MemTotal"]) * 1024))
        with suppress(OSError, ValueError):
            found.append(("cpu_utilization_ratio", {}, self._cpu_utilization()))
        for volume, path in self._volumes.items():
            with suppress(OSError):
                usage = shutil.disk_usage(path)
                found.append(("disk_free_bytes", {"volume": volume}, usage.free))
                found.append(("disk_size_bytes", {"volume": volume}, usage.total))
        return found

    def _cpu_utilization(self) -> float:
        """Return the share of processor time in use since the last call; at the first call, since boot."""
        fields = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        total, idle = sum(fields), fields[3] + fields[4]
        before, self._ticks = self._ticks, (total, idle)
        passed = total - before[0]
        return 1 - (idle - before[1]) / passed if passed > 0 else 0.0


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of a process; None if the process does not exist."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None

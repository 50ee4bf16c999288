"""Runs a benchmark script again as the ranks of a process group on this machine."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_ranks(ranks: int, arguments: list[str]) -> Any:
    """Start the running script with ``arguments`` on ``ranks`` processes of one thread and return what rank 0 wrote.

    The script finds RANK in its environment, and writes its figures to the last ``--json`` it is given. Memory that is
    freed goes back to the system at once, or the size of a process would not tell what it holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        eager = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **eager}
        spec = sys.modules["__main__"].__spec__  # None for a script that was started by its path
        program = ["-m", spec.name] if spec else [sys.argv[0]]
        command = [*launcher, *program, *arguments, f"--json={out}"]
        if subprocess.run(command, env=environment, check=False).returncode:
            sys.exit(f"the benchmark's {ranks} processes failed: see above")
        return json.loads(out.read_text())

"""Run a benchmark script as the ranks of a process group on this machine."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_ranks(ranks: int, arguments: list[str]) -> Any:
    """Start the current script on ``ranks`` processes with one thread each, and return the results of rank 0.

    The script finds RANK in its environment and writes its results to the last ``--json``. Freed memory returns to the
    system at once, because otherwise the size of a process would not show how much it holds.
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
            sys.exit(f"the {ranks} processes of the benchmark failed: see the messages above")
        return json.loads(out.read_text())

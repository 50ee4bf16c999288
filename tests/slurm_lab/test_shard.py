import sys
import time
from pathlib import Path

import pytest

from tests.data_tools.make_shards.runs import fingerprint, make, small_set
from tests.slurm_lab.lab import Lab

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_an_array_makes_the_shards_of_one_run(lab: Lab, tmp_path) -> None:
    videos, out = small_set(tmp_path / "videos", 12), tmp_path / "out"
    assert make(videos, tmp_path / "alone") == 0
    command = ["folder", "--videos", str(videos), "--out", str(out), "--samples-per-shard", "3"]
    script = [
        sys.executable,
        "-m",
        "motionmae",
        "shards",
        "submit",
        "--parts",
        "2",
        "--cpus",
        "1",
        "--time",
        "5",
        "--",
        *command,
    ]
    done = lab.run(*script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    end = time.monotonic() + 120
    while not (out / "manifest.json").exists() and time.monotonic() < end:
        time.sleep(0.2)
    logs = {path.name: path.read_text() for path in (out / ".make_shards" / "logs").iterdir()}
    found = {name: value for name, value in fingerprint(out).items() if not name.startswith(".make_shards/logs")}
    assert found == fingerprint(tmp_path / "alone"), logs
    assert sorted(logs) == ["manifest.log", "part-0.log", "part-1.log"]

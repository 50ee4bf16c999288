import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_leaves_nothing_that_prometheus_would_take_for_a_run(tmp_path: Path) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    tiny = ["clip.size=32", "clip.frames=4", "engine.device=cpu"]
    asked = ["--only", "motionmae", "--batch", "1", "--rounds", "1", "--warmup", "0", *tiny]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", *asked],
        cwd=here, env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not list(here.iterdir())
    assert not list(temporary.rglob("vitb_k400-0.json"))

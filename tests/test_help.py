import subprocess
import sys
from pathlib import Path

import pytest

from tests.monitoring.runs import ROOT


@pytest.mark.parametrize(
    "words",
    [["slurm/demo.py"], *(["-m", f"monitoring.{name}"] for name in ("exporter", "metric_definitions"))],
    ids=lambda words: words[-1],
)
def test_to_ask_for_help_does_nothing_else(words: list[str]) -> None:
    pages = list((ROOT / "monitoring/grafana").glob("*.json"))
    before = [page.stat().st_mtime_ns for page in pages]
    asked = subprocess.Popen(
        [sys.executable, *words, "--help"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        told, _ = asked.communicate(timeout=30)
    finally:
        asked.kill()
    assert asked.returncode == 0
    assert told.startswith(f"usage: {'python -m ' if words[0] == '-m' else ''}{Path(words[-1]).name} [-h]\n")
    assert [page.stat().st_mtime_ns for page in pages] == before

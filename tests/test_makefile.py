"""The Makefile and the user's own files and variables."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.foreign_files import sow, sown
from tests.monitoring.runs import ROOT


def test_make_takes_nothing_from_the_shell_and_cleans_only_its_own(tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    for name in (".venv", "data/demo", "runs/demo", "mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".venv/.test").touch()
    sow(tmp_path / "data")
    sow(tmp_path / "runs")
    before = sown(tmp_path)
    shell = {**os.environ, "VENV": str(tmp_path / "mine")}
    for words in (["-n", "clean"], ["-n", "demo"], ["clean"]):
        done = subprocess.run(["make", *words], cwd=tmp_path, env=shell, capture_output=True, text=True, check=True)
        assert str(tmp_path / "mine") not in done.stdout
    assert sown(tmp_path) == before
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / ".venv").exists()
    (tmp_path / ".venv").mkdir()  # an environment that was made in another way
    subprocess.run(["make", "clean"], cwd=tmp_path, env=shell, capture_output=True, check=True)
    assert (tmp_path / ".venv").is_dir()

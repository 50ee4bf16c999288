"""The Makefile and the user's own files and variables."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.reader import write_repository
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


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in which everything is installed: its environment is that of the tests."""
    folder = write_repository(tmp_path / "clone")
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (programs / "python").chmod(0o755)
    for extras in (".demo", ".test"):
        (folder / ".venv" / extras).touch()
    azurite = folder / ".venv/azurite/node_modules/.bin/azurite-blob"  # not used here, and npm would download it
    azurite.parent.mkdir(parents=True)
    azurite.touch(0o755)
    return folder


def make(clone: Path, target: str, **variables: str) -> str:
    done = subprocess.run(
        ["make", target], cwd=clone, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_make_demo_is_preempted_and_resumes_without_a_lost_step(clone: Path):
    config = clone / "configs/demo.yaml"
    text = config.read_text()
    assert "{epochs: 420, warmup_epochs: 25}" in text
    config.write_text(text.replace("{epochs: 420, warmup_epochs: 25}", "{epochs: 40, warmup_epochs: 2}"))
    printed = make(clone, "demo", COLUMNS="200")
    assert re.search(r"steps lost\D+0\b", printed), printed
    for name in ("reconstruction.png", "report.html", "losses.json"):
        assert (clone / "runs/demo" / name).stat().st_size > 0


@pytest.mark.long
def test_make_test_runs_the_tests(clone: Path):
    assert re.search(r"\n\d+ passed in", make(clone, "test", PYTEST_ADDOPTS="tests/test_locks.py"))

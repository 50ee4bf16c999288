"""What a run says of the code that trains it."""

import json
import subprocess
from pathlib import Path

import pytest

from motionmae import __version__
from motionmae.runs.git_revision import git_output, git_revision


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_commit_of_a_checkout_of_a_snapshot_and_of_none(tmp_path: Path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert git_revision(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == f"{commit}, changed"

    inside = tmp_path / "runs" / "demo" / "code" / "abc"
    inside.mkdir(parents=True)
    assert git_revision(inside) == f"motionmae {__version__}"  # not the commit of the repository around it
    inside.with_suffix(".json").write_text(json.dumps({"commit": "1234", "changed": True}))
    assert git_revision(inside) == "1234, changed"


def test_a_snapshot_of_no_repository_has_the_version(tmp_path: Path):
    code = tmp_path / "code/abc"
    code.mkdir(parents=True)
    for found in ({}, {"commit": "", "changed": True}):
        code.with_suffix(".json").write_text(json.dumps(found))
        assert git_revision(code) == f"motionmae {__version__}"
    code.with_suffix(".json").write_text(json.dumps({"commit": "1234"}))
    assert git_revision(code) == "1234"
    elsewhere = tmp_path / "src/abc"
    elsewhere.mkdir(parents=True)
    elsewhere.with_suffix(".json").write_text(json.dumps({"commit": "1234"}))
    assert git_revision(elsewhere) == f"motionmae {__version__}"  # no snapshot


def test_files_that_git_does_not_know_change_nothing(tmp_path: Path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "a", "--allow-empty")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a").write_text("")
    assert git_revision(tmp_path) == git(tmp_path, "rev-parse", "HEAD").strip()


def test_a_machine_without_git_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert git_output(tmp_path, "no-such-command") == b""
    monkeypatch.setenv("PATH", "")
    assert git_output(tmp_path, "status") == b""
    assert git_revision(tmp_path) == f"motionmae {__version__}"

"""What a run says of the code that trains it."""

import json
import subprocess
from pathlib import Path

from motionmae import __version__
from motionmae.runs.git_revision import git_revision


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

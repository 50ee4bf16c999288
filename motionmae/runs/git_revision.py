"""Which code trains: what a run's events and a model card say of it."""

import json
import subprocess
from pathlib import Path

from motionmae import __version__

_ROOT = Path(__file__).resolve().parents[2]


def git_revision(root: Path = _ROOT) -> str:
    """The commit of this code, with ``, changed`` where files differ from it; without git, the package's version.

    Args:
        root: folder of the packages: a checkout, the snapshot of a submitted run (whose note lies beside it), or where
            pip has put them.
    """
    note = root.with_name(f"{root.name}.json")
    if root.parent.name == "code" and note.is_file():
        found = json.loads(note.read_text())
        commit, changed = str(found.get("commit", "")), bool(found.get("changed"))
    else:
        top, _, commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").rpartition("\n")
        if Path(top or "/").resolve() != root:  # a repository that only happens to lie around it
            commit = ""
        changed = bool(commit) and bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    if not commit:
        return f"motionmae {__version__}"
    return f"{commit}, changed" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    """What git says; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""Git revision of the code, for a run's events and model cards."""

import json
import subprocess
from pathlib import Path

from motionmae import __version__

_ROOT = Path(__file__).resolve().parents[2]


def git_revision(root: Path = _ROOT) -> str:
    """Return the commit of this code, with ``, changed`` if files differ from it; without git, the package's version.

    Args:
        root: folder of the packages: a checkout, site-packages, or the code snapshot of a submitted run, whose commit
            is in a file beside it.
    """
    note = root.with_name(f"{root.name}.json")
    if root.parent.name == "code" and note.is_file():
        found = json.loads(note.read_text())
        commit, changed = str(found.get("commit", "")), bool(found.get("changed"))
    else:
        top, _, commit = git_output(root, "rev-parse", "--show-toplevel", "HEAD").decode().strip().rpartition("\n")
        if Path(top or "/").resolve() != root:  # another project's repository around the packages
            commit = ""
        changed = bool(commit) and bool(git_output(root, "status", "--porcelain", "--untracked-files=no"))
    if not commit:
        return f"motionmae {__version__}"
    return f"{commit}, changed" if changed else commit


def git_output(root: Path, *arguments: str) -> bytes:
    """Return the output of a git command; empty without git or without a repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    except OSError:
        return b""
    return done.stdout if done.returncode == 0 else b""

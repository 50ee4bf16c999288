"""Copy of the code in the run folder. A job that is requeued next week still runs the code that was submitted.

::

    RUN/code/3f9a1c0d22b7/        the files; working directory of the job, and therefore its first import path
    RUN/code/3f9a1c0d22b7.json    git commit, whether files differ from it, files that were left out or are not in git
    RUN/code/3f9a1c0d22b7.diff    difference to the commit, for the owner alone

Files that look like keys are left out, see :mod:`slurm.secret_files`. The name of a snapshot is a hash of the content.
Unchanged code is not copied again, and a waiting job keeps its own snapshot.
"""

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from motionmae.files import atomic_folder
from motionmae.runs.git_revision import git_output
from motionmae.text import excerpt
from slurm.secret_files import has_secret_name, holds_private_key, looks_secret

LARGEST_UNTRACKED = 5_000_000
"""Size in bytes. A larger untracked file is probably data, and is left out and reported."""
MOST_NAMES = 20
"""Untracked files that a note names."""
_WITHOUT_GIT = ("motionmae", "data_tools", "slurm", "monitoring", "configs", "pyproject.toml")


@dataclass(frozen=True)
class CodeSnapshot:
    """Files to copy and their git state."""

    root: Path  # repository root
    files: tuple[Path, ...]  # paths to copy, relative to root
    commit: str = ""  # checked-out git commit; empty without git
    diff: bytes = b""  # difference of the tracked files to the commit
    left_out: tuple[Path, ...] = ()  # untracked files over LARGEST_UNTRACKED
    secret: tuple[Path, ...] = ()  # files that look like keys, or links that leave the repository; left out, too
    untracked: tuple[Path, ...] = ()  # files to copy that are not in git

    @functools.cached_property
    def name(self) -> str:
        """Hash of the names and contents of the files."""
        digest = hashlib.sha256()
        for path in self.files:
            content = (self.root / path).read_bytes()
            executable = os.access(self.root / path, os.X_OK)
            digest.update(f"{path}\0{len(content)}\0{executable}\0".encode(errors="surrogateescape") + content)
        return digest.hexdigest()[:12]

    def folder(self, run: Path) -> Path:
        return run / "code" / self.name

    def notes(self) -> Iterator[str]:
        """Yield what the user must know before others can read the copy: what it lacks, and what git does not have."""
        for path in self.left_out:
            yield f"{excerpt(path)} is not part of the code snapshot, because it is large and not in git"
        for path in self.secret:
            yield f"{excerpt(path)} is not part of the code snapshot, because it looks like a key or leaves the code"
        if self.untracked:
            names = ", ".join(excerpt(path) for path in self.untracked[:MOST_NAMES])
            more = f" and {len(self.untracked) - MOST_NAMES} more" if len(self.untracked) > MOST_NAMES else ""
            yield f"the code snapshot holds files that are not in git: {names}{more}"

    def write(self, run: Path) -> Path:
        """Copy the files into the run folder, unless the snapshot exists, and return the snapshot's folder.

        An exception removes the partial copy.
        """
        target = self.folder(run)
        if target.is_dir():
            return target
        record = {"commit": self.commit, "changed": bool(self.diff), "files": len(self.files)}
        record |= {"left_out": [str(path) for path in (*self.left_out, *self.secret)]}
        record |= {"untracked": [str(path) for path in self.untracked]}
        with atomic_folder(target) as temporary:
            for path in self.files:
                copy = temporary / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / path, copy)
            _write_private(target.with_suffix(".diff"), self.diff)
            target.with_suffix(".json").write_text(json.dumps(record, indent=1))
        return target


def collect(root: Path, outside: Sequence[Path] = ()) -> CodeSnapshot:
    """List the code in the repository, except the folders ``outside`` (such as the output folder).

    In a clone, the list holds tracked files and untracked files that are not ignored. Without git, and in the
    site-packages of an installed wheel, the list holds the packages and the configs.
    """
    listed = git_output(root, "ls-files", "-z", "--cached")
    if not listed:  # no repository, or the site-packages of a virtual environment in a clone
        found = set(_package_files(root))
        secret = {path for path in found if looks_secret(root, path, tracked=True, installed=True)}
        return CodeSnapshot(root, tuple(sorted(found - secret)), secret=tuple(sorted(secret)))
    excluded = [folder.resolve() for folder in outside]

    def existing(names: bytes) -> set[Path]:
        paths = {Path(os.fsdecode(name)) for name in names.split(b"\0") if (root / os.fsdecode(name)).is_file()}
        return {path for path in paths if not any((root / path).resolve().is_relative_to(out) for out in excluded)}

    untracked = existing(git_output(root, "ls-files", "-z", "--others", "--exclude-standard"))
    large = {path for path in untracked if (root / path).stat().st_size > LARGEST_UNTRACKED}
    tracked = existing(listed)
    secret = {path for path in tracked if looks_secret(root, path, tracked=True)}
    secret |= {path for path in untracked - large if looks_secret(root, path, tracked=False)}
    commit = git_output(root, "rev-parse", "HEAD").decode().strip()
    return CodeSnapshot(
        root,
        tuple(sorted((tracked | untracked - large) - secret)),
        commit,
        _diff(root, secret),
        tuple(sorted(large)),
        tuple(sorted(secret)),
        tuple(sorted(untracked - large - secret)),
    )


def _diff(root: Path, secret: set[Path]) -> bytes:
    """Return the difference to the commit without files that are, or were before a deletion, left out as secret."""
    changed = [Path(os.fsdecode(name)) for name in git_output(root, "diff", "HEAD", "--name-only", "-z").split(b"\0")]
    hidden = [str(path) for path in changed if path in secret or has_secret_name(path, tracked=True)]
    diff = git_output(root, "diff", "HEAD", "--binary", "--", ".", *(f":(exclude,literal){path}" for path in hidden))
    files = re.split(rb"^(?=diff --git )", diff, flags=re.MULTILINE)
    return b"".join(each for each in files if not holds_private_key(each))


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only the owner can read, as a changed file may be private."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _package_files(root: Path) -> list[Path]:
    found = [path for name in _WITHOUT_GIT for path in ((root / name), *(root / name).rglob("*")) if path.is_file()]
    return sorted(path.relative_to(root) for path in found if "__pycache__" not in path.parts)

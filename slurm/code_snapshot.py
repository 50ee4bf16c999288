"""A copy of the code in the run folder, so that a job requeued next week runs what was submitted today.

::

    RUN/code/3f9a1c0d22b7/        the files; the job's working directory, and so the first place it imports from
    RUN/code/3f9a1c0d22b7.json    git commit, whether files differed from it, what was left out
    RUN/code/3f9a1c0d22b7.diff    the difference to that commit

A snapshot is named by its content: submitting unchanged code again uses the one that is there, and a job that waits in
the queue keeps its own.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from motionmae.files import atomic_path

LARGEST_UNTRACKED = 5_000_000
"""Bytes; a bigger file that git does not know is data or a mistake, and is left out and reported."""
_WITHOUT_GIT = ("motionmae", "data_tools", "slurm", "monitoring", "configs", "pyproject.toml")


@dataclass(frozen=True)
class Snapshot:
    """What is to be copied, before it is.

    Args:
        root: repository root.
        files: paths to copy, relative to ``root``.
        commit: git commit that is checked out, empty without git.
        diff: difference of the tracked files to ``commit``.
        left_out: untracked files over :data:`LARGEST_UNTRACKED`.
    """

    root: Path
    files: tuple[Path, ...]
    commit: str = ""
    diff: bytes = b""
    left_out: tuple[Path, ...] = ()
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _content_name(self.root, self.files))

    def folder(self, run: Path) -> Path:
        """Where the copy of this snapshot lies, or will lie, below the run folder ``run``."""
        return run / "code" / self.name

    def write(self, run: Path) -> Path:
        """Copy the files below ``run`` unless they are there already, and return their folder.

        Raises:
            OSError: if they cannot be copied; what had been copied is removed again.
        """
        target = self.folder(run)
        if target.is_dir():
            return target
        with atomic_path(target, durable=False) as temporary:
            for path in self.files:
                copy = temporary / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / path, copy)
            target.with_suffix(".diff").write_bytes(self.diff)
            target.with_suffix(".json").write_text(json.dumps(self._record(), indent=1))
        return target

    def _record(self) -> dict[str, object]:
        return {
            "commit": self.commit,
            "changed": bool(self.diff),
            "files": len(self.files),
            "left_out": [str(path) for path in self.left_out],
        }


def survey(root: Path, outside: Sequence[Path] = ()) -> Snapshot:
    """Find what belongs to the code below ``root``.

    With git: tracked files, and untracked ones that are not ignored. Without: the packages and the configs.

    Args:
        root: repository root.
        outside: folders that are no code wherever they lie, such as the run folders.
    """
    listed = _git(root, "ls-files", "-z", "--cached")
    if listed is None:
        return Snapshot(root, tuple(_package_files(root)))
    tracked = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard") or b""
    untracked = {Path(os.fsdecode(name)) for name in others.split(b"\0") if name} - tracked
    excluded = [folder.resolve() for folder in outside]

    def belongs(path: Path) -> bool:
        return (root / path).is_file() and not any((root / path).resolve().is_relative_to(out) for out in excluded)

    untracked = {path for path in untracked if belongs(path)}
    large = {path for path in untracked if (root / path).stat().st_size > LARGEST_UNTRACKED}
    files = {path for path in tracked if belongs(path)} | (untracked - large)
    commit = (_git(root, "rev-parse", "HEAD") or b"").decode().strip()
    diff = (_git(root, "diff", "HEAD", "--binary") or b"") if commit else b""
    return Snapshot(root, tuple(sorted(files)), commit, diff, tuple(sorted(large)))


def _git(root: Path, *arguments: str) -> bytes | None:
    """What git says, or None where there is no git, no repository, or no such object."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _package_files(root: Path) -> list[Path]:
    found = [path for name in _WITHOUT_GIT for path in ((root / name), *(root / name).rglob("*")) if path.is_file()]
    return sorted(path.relative_to(root) for path in found if "__pycache__" not in path.parts)


def _content_name(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        content = (root / path).read_bytes()
        executable = os.access(root / path, os.X_OK)
        digest.update(f"{path}\0{len(content)}\0{executable}\0".encode(errors="surrogateescape") + content)
    return digest.hexdigest()[:12]

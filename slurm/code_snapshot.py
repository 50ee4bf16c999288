"""Copy of the code in the run folder. A job that is requeued next week still runs the code that was submitted.

::

    RUN/code/3f9a1c0d22b7/        the files; working directory of the job, and therefore its first import path
    RUN/code/3f9a1c0d22b7.json    git commit, whether files differ from it, files that were left out
    RUN/code/3f9a1c0d22b7.diff    difference to the commit

The name is a hash of the content. Unchanged code is not copied again, and a waiting job keeps its own snapshot.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from motionmae.files import atomic_folder
from motionmae.runs.git_revision import git_output

LARGEST_UNTRACKED = 5_000_000
"""Size in bytes. A larger untracked file is probably data, and is left out and reported."""
_WITHOUT_GIT = ("motionmae", "data_tools", "slurm", "monitoring", "configs", "pyproject.toml")


@dataclass(frozen=True)
class CodeSnapshot:
    """Files to copy and their git state."""

    root: Path  # repository root
    files: tuple[Path, ...]  # paths to copy, relative to root
    commit: str = ""  # checked-out git commit; empty without git
    diff: bytes = b""  # difference of the tracked files to the commit
    left_out: tuple[Path, ...] = ()  # untracked files over LARGEST_UNTRACKED

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

    def write(self, run: Path) -> Path:
        """Copy the files into the run folder, unless the snapshot exists, and return the snapshot's folder.

        An exception removes the partial copy.
        """
        target = self.folder(run)
        if target.is_dir():
            return target
        left_out = [str(path) for path in self.left_out]
        record = {"commit": self.commit, "changed": bool(self.diff), "files": len(self.files), "left_out": left_out}
        with atomic_folder(target) as temporary:
            for path in self.files:
                copy = temporary / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / path, copy)
            target.with_suffix(".diff").write_bytes(self.diff)
            target.with_suffix(".json").write_text(json.dumps(record, indent=1))
        return target


def collect(root: Path, outside: Sequence[Path] = ()) -> CodeSnapshot:
    """List the code in the repository, except the folders ``outside`` (such as the output folder).

    In a clone, the list holds tracked files and untracked files that are not ignored. Without git, and in the
    site-packages of an installed wheel, the list holds the packages and the configs.
    """
    listed = git_output(root, "ls-files", "-z", "--cached")
    if not listed:  # no repository, or the site-packages of a virtual environment in a clone
        return CodeSnapshot(root, tuple(_package_files(root)))
    excluded = [folder.resolve() for folder in outside]

    def existing(names: bytes) -> set[Path]:
        paths = {Path(os.fsdecode(name)) for name in names.split(b"\0") if (root / os.fsdecode(name)).is_file()}
        return {path for path in paths if not any((root / path).resolve().is_relative_to(out) for out in excluded)}

    untracked = existing(git_output(root, "ls-files", "-z", "--others", "--exclude-standard"))
    large = {path for path in untracked if (root / path).stat().st_size > LARGEST_UNTRACKED}
    files = existing(listed) | untracked - large
    commit = git_output(root, "rev-parse", "HEAD").decode().strip()
    diff = git_output(root, "diff", "HEAD", "--binary")
    return CodeSnapshot(root, tuple(sorted(files)), commit, diff, tuple(sorted(large)))


def _package_files(root: Path) -> list[Path]:
    found = [path for name in _WITHOUT_GIT for path in ((root / name), *(root / name).rglob("*")) if path.is_file()]
    return sorted(path.relative_to(root) for path in found if "__pycache__" not in path.parts)

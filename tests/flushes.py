"""Record the flushes and renames of this process in order. :mod:`tests.fault_injection` does more, in seconds."""

import os
from pathlib import Path

import pytest


def record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list that grows by ("fsync", path) and ("rename", new path); paths are relative to ``folder``."""
    found: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(descriptor: int) -> None:
        found.append(("fsync", os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), folder.resolve())))
        real["fsync"](descriptor)

    def renames(name: str) -> None:
        def rename(old: str, new: str, **options: int) -> None:
            found.append(("rename", os.path.relpath(new, folder)))
            real[name](old, new, **options)

        monkeypatch.setattr(os, name, rename)

    monkeypatch.setattr(os, "fsync", fsync)
    renames("rename")
    renames("replace")
    return found

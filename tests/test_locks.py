"""Locks between processes."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from motionmae import locks


def test_an_exclusive_lock_excludes_and_shared_locks_coexist(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second, path.open() as third:
        assert locks.acquire(first, shared=True)
        assert locks.acquire(second, shared=True)
        assert not locks.acquire(third)
        assert locks.acquire(third, shared=True)
        assert locks.acquire(third, shared=True, timeout=None)


def test_a_lock_is_waited_for_until_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = path.open("w")
    assert locks.acquire(holder)
    with path.open() as other:
        begun = time.monotonic()
        assert not locks.acquire(other, timeout=0.3)
        assert 0.3 <= time.monotonic() - begun < 5
        threading.Timer(0.2, holder.close).start()
        assert locks.acquire(other, timeout=30)


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    text = f"from motionmae import locks; f = open({str(path)!r}, 'w'); print(locks.acquire(f), flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with path.open() as other:
        assert not locks.acquire(other)
        holder.kill()
        holder.communicate()
        assert locks.acquire(other)

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from motionmae import locks


def hold(path: Path, shared: bool, posix: bool, pipe) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    pipe.send(locks.acquire(descriptor, shared=shared, posix=posix))
    pipe.recv()


@pytest.mark.parametrize("posix", [False, True])
def test_locks_exclude_other_processes_until_their_holder_ends(tmp_path: Path, posix: bool):
    path = tmp_path / "lock"
    here, there = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(path, True, posix, there))
    holder.start()
    assert here.recv()
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert locks.acquire(descriptor, shared=True, posix=posix)
        start = time.monotonic()
        assert not locks.acquire(descriptor, timeout=0.2, posix=posix)
        assert time.monotonic() - start >= 0.2
        here.send(None)
        holder.join()
        assert locks.acquire(descriptor, timeout=5, posix=posix)
    finally:
        os.close(descriptor)

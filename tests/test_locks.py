import multiprocessing
import os
import threading
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


def test_a_wait_without_a_limit_ends_when_the_lock_is_free(tmp_path: Path):
    path = tmp_path / "lock"
    here, there = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(path, False, False, there))
    holder.start()
    assert here.recv()
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert not locks.acquire(descriptor, shared=True)  # the holder's lock is exclusive
        threading.Timer(0.2, here.send, [None]).start()
        start = time.monotonic()
        assert locks.acquire(descriptor, timeout=None)
        assert time.monotonic() - start >= 0.15
        holder.join()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("posix", [False, True])
def test_a_posix_lock_is_of_the_process_and_another_of_the_open_file(tmp_path: Path, posix: bool):
    with (tmp_path / "lock").open("w+") as one, (tmp_path / "lock").open("r+") as other:
        assert locks.acquire(one, posix=posix)
        assert locks.acquire(other, posix=posix) is posix
        assert locks.acquire(one, shared=True, timeout=None, posix=posix)
        assert locks.acquire(other, shared=True, timeout=None, posix=posix)  # the first lock is shared now

"""Downloads ahead of the decoders: several at once, none, and with a server that stalls."""

import itertools
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader
from motionmae.errors import UserError
from tests.data.made_shards import make_shards

COUNTS = (4,) * 8
CLIP = ClipConfig(frames=2, size=16, stride=1)
TARS = [f"toy-{number:06d}.tar" for number in range(len(COUNTS))]
pytestmark = pytest.mark.usefixtures("short_delays")


@pytest.fixture
def folder(tmp_path):
    make_shards(tmp_path / "s", COUNTS)
    return tmp_path / "s"


def opened(tmp_path, server, downloads, **changes):
    """A loader whose window and next window are all shards. One thread decodes."""
    settings = {"shuffle_window_shards": 4, "threads": 1, "prefetch": 1, "remote_timeout": 30} | changes
    data = DataConfig(shards=server.url, cache=str(tmp_path / "cache"), downloads=downloads, **settings)
    return ClipLoader(data, CLIP, seed=3, batch=4, micro_batch_size=4)


def cached(tmp_path):
    return {path.name.partition("-")[2] for path in Path(tmp_path / "cache").glob("*.tar")}


def first_shard(loader):
    """Name of the shard that the only rank downloads first."""
    _, window = loader.order.pass_of(0, 0).window(0)
    return TARS[window[0]]


def wait_for(condition):
    for _ in range(400):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("nothing happened in 20 s")


def test_shards_are_downloaded_at_the_same_time(tmp_path, server):
    """The server answers none of the first four requests for a shard before the fourth has come."""
    together = threading.Barrier(4)
    for name in TARS:
        server.faults[name] = [("meet", together)]
    with opened(tmp_path, server, downloads=4) as loader:
        next(loader.batches(0))
        wait_for(lambda: cached(tmp_path) == set(TARS))
    assert not together.broken
    assert sorted(name for name, _ in server.requests if name in TARS) == TARS


def test_a_stalled_shard_holds_up_no_other(tmp_path, server):
    with opened(tmp_path, server, downloads=2) as loader:
        first = first_shard(loader)
        server.faults[first] = [("slow", 60)]
        loader._prefetchers.advance_to(loader.order.cursors(0, 0))
        wait_for(lambda: cached(tmp_path) == set(TARS) - {first})
        server.over.set()
        assert len(list(itertools.islice(loader.batches(0), 8))) == 8
    assert cached(tmp_path) == set(TARS)


def test_a_shard_that_the_server_refuses_holds_up_no_other(tmp_path, server):
    with opened(tmp_path, server, downloads=1, remote_retries=2) as loader:
        first = first_shard(loader)
        server.faults[first] = [500] * 3
        loader._prefetchers.advance_to(loader.order.cursors(0, 0))
        wait_for(lambda: cached(tmp_path) == set(TARS) - {first})


def test_without_prefetch_only_what_is_read_is_downloaded(tmp_path, server):
    with opened(tmp_path, server, downloads=0) as loader:
        batch = next(loader.batches(0))
        assert {TARS[sample // 4] for sample in batch.samples.tolist()} <= cached(tmp_path)
        _, window = loader.order.pass_of(0, 0).window(0)
        threading.Event().wait(0.3)
        assert cached(tmp_path) <= {TARS[number] for number in window}
    assert len(server.requests) < 2 * len(TARS)


@pytest.mark.parametrize("name", [TARS[0], "toy-000000.idx.json"])
def test_close_cancels_requests_to_a_server_that_stalls(tmp_path, server, name):
    """A clip and two downloads wait for the file. The connection would fail after 30 s without data."""
    suffix = name.partition(".")[2]
    for tar in TARS:
        server.faults[tar.replace("tar", suffix)] = [("stall", 100)]
    loader = opened(tmp_path, server, downloads=2)
    batches = loader.batches(0)
    reading = threading.Thread(target=lambda: next(batches, None), daemon=True)
    threading.excepthook, hook = lambda *_: None, threading.excepthook
    try:
        reading.start()
        wait_for(lambda: len(server.requests) >= 3)
        started = time.monotonic()
        loader.close()
        assert time.monotonic() - started < 10
        reading.join()
    finally:
        threading.excepthook = hook


_LEAVE = """
import sys, time
from pathlib import Path
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader

data = DataConfig(shards=sys.argv[1], cache=sys.argv[2], downloads=2, threads=1, remote_timeout=300)
loader = ClipLoader(data, ClipConfig(frames=2, size=16, stride=1), seed=3, batch=4, micro_batch_size=4)
loader._submit(0)
while not list(Path(sys.argv[2]).glob("*.part")):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("fault", [("slow", 0.5), ("stall", 100)])
def test_a_program_that_leaves_a_loader_open_ends_quietly(tmp_path, server, fault):
    """The connection of a server that stalls would fail after 300 s without data."""
    for tar in TARS:
        server.faults[tar] = [fault]
    command = [sys.executable, "-c", _LEAVE, server.url, str(tmp_path / "cache")]
    ended = subprocess.run(command, check=False, timeout=300, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_too_small_leaves_no_decoder_behind(tmp_path, server, workers):
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError, match=r"data\.cache_gb"):
        opened(tmp_path, server, downloads=2, workers=workers, cache_gb=1e-6)
    assert set(multiprocessing.active_children()) == before

from collections.abc import Iterator
from pathlib import Path

import pytest

from motionmae.data.remote import download
from tests.data.loading import COUNTS, steps
from tests.data.made_shards import make_shards
from tests.data.shard_server import ShardServer, serving


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without delay, and without a proxy for loopback."""
    monkeypatch.setattr(download, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(folder: Path) -> Iterator[ShardServer]:
    """HTTP server of the shards of the test's fixture ``folder``."""
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader") / "shards"
    make_shards(folder, COUNTS)
    return folder


@pytest.fixture(scope="module")
def one_rank(shards: Path) -> list[list[tuple]]:
    """Nine steps (two epochs of four steps and one more) of a single rank with one thread."""
    return steps(shards, 0, 9, threads=1)

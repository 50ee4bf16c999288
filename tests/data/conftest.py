from collections.abc import Iterator
from pathlib import Path

import pytest

from motionmae.data import transfer
from tests.data.shard_server import ShardServer, serving


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once, and no proxy stands before loopback."""
    monkeypatch.setattr(transfer, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(folder: Path) -> Iterator[ShardServer]:
    """An HTTP server of the shards that the test's own fixture ``folder`` made."""
    with serving(folder) as running:
        yield running

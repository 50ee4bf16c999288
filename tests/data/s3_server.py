"""S3 server of moto on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the URL of an empty S3 server. Skip the test where moto is not installed.

    All servers of moto in a process share their buckets, so it begins and ends with none.
    """
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        _reset(url)
        yield url
        _reset(url)
    finally:
        server.stop()


def _reset(url: str) -> None:
    with urlopen(Request(f"{url}/moto-api/reset", method="POST"), timeout=60) as answer:
        assert answer.status == 200

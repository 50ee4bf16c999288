"""Servers that send too much, too slowly or compressed; caches in a folder with files of the user."""

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from motionmae.config import DataConfig
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.remote import download
from motionmae.data.shards.errors import CorruptSample, Reason
from motionmae.errors import UserError
from tests.data.made_shards import make_shards

pytest.importorskip("aiohttp")
SHARD, INDEX, MANIFEST = "toy-000000.tar", "toy-000000.idx.json", "manifest.json"
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def serving(folder: Path, answers: dict[str, Answer], over: threading.Event) -> Iterator[str]:
    """Serve ``folder``; a name in ``answers`` is answered by its function."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            content = (folder / name).read_bytes()
            try:
                answers.get(name, plain)(self, content)
            except OSError:  # the client has given up
                self.close_connection = True

        def log_message(self, *arguments):
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def plain(handler, content, **headers):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def endless(handler, content):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * (1 << 16))


def bomb(handler, content):
    plain(handler, gzip.compress(bytes(20 << 20)), Content_Encoding="gzip")


@pytest.fixture
def over():
    """Event at the end of the test, on which slow answers wait."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def drip(over):
    """Answer of one byte every 50 ms, each of which comes within the timeout."""

    def answer(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for position in range(len(content)):
            handler.wfile.write(content[position : position + 1])
            handler.wfile.flush()
            if over.wait(0.05):
                return

    return answer


@pytest.fixture
def folder(tmp_path):
    make_shards(tmp_path / "toy", (3,))
    return tmp_path / "toy"


@pytest.fixture
def data(tmp_path, short_delays):
    return DataConfig(cache=str(tmp_path / "cache"), remote_retries=1, remote_timeout=1.0)


def read(url: str, data: DataConfig) -> list[memoryview]:
    return open_reader(url, data=data).read_frames(0, [0])


class TestManifest:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [(endless, "longer than it may be"), (bomb, "sends it compressed, although identity encoding was asked for")],
    )
    def test_too_much_is_refused(self, folder, data, over, monkeypatch, answer, message):
        monkeypatch.setattr("motionmae.data.open_shards.JSON_LIMIT", 1 << 20)
        with serving(folder, {MANIFEST: answer}, over) as url, pytest.raises(UserError, match=message):
            load_manifest(url, data)

    def test_identity_encoding_is_asked_for(self, folder, data, over):
        asked = []

        def note(handler, content):
            asked.append(handler.headers["Accept-Encoding"])
            plain(handler, content)

        with serving(folder, dict.fromkeys((MANIFEST, SHARD, INDEX), note), over) as url:
            read(url, data)
        assert asked == ["identity"] * 3

    def test_a_drip_ends_after_the_total_time(self, folder, data, over, drip, monkeypatch):
        monkeypatch.setattr(download, "_TIME_FACTOR", 1.5)
        with (
            serving(folder, {MANIFEST: drip}, over) as url,
            pytest.raises(UserError, match="did not arrive within 2 s"),
        ):
            load_manifest(url, data)


class TestShard:
    @pytest.mark.parametrize("answer", [endless, bomb])
    @pytest.mark.parametrize(("name", "reason"), [(SHARD, Reason.REPLACED_SHARD), (INDEX, Reason.BAD_INDEX)])
    def test_too_much_is_a_corrupt_sample(self, folder, data, over, answer, name, reason):
        with serving(folder, {name: answer}, over) as url, pytest.raises(CorruptSample) as caught:
            read(url, data)
        assert caught.value.reason is reason
        kept = sum(path.stat().st_size for path in Path(data.cache).iterdir())
        assert kept <= sum(path.stat().st_size for path in folder.iterdir())

    def test_a_drip_ends_after_the_total_time(self, folder, data, over, drip, monkeypatch):
        monkeypatch.setattr(download, "_TIME_FACTOR", 1.0)
        monkeypatch.setattr(download, "_SLOWEST", 1 << 20)
        with serving(folder, {SHARD: drip}, over) as url, pytest.raises(UserError, match="did not arrive within 1 s"):
            read(url, data)


class TestCacheAmongOtherFiles:
    NAMES = (
        ".lock",
        "notes.txt",
        "thesis.tar",
        "a" * 32 + "-.tar",
        "a" * 32 + "-holiday.tar",  # has no index
        "a" * 31 + "-x.tar",
        "A" * 32 + "-x.tar",
        "a" * 32 + "-x.tar.bak",
        "a" * 32 + "-x.tar.-5.part",
        "a" * 32 + "-x.tar.5x.part",
        "a" * 32 + "-x.tar.0.part",
        "a" * 32 + "-x.idx.json.old",
        "a" * 32 + "-x.idx.json.tmp",
        "." + "a" * 32 + "-x.idx.json.0123.tmp",
        "a" * 32 + "-my notes.idx.json",
    )

    def test_they_are_neither_changed_nor_removed(self, folder, data, over):
        cache = Path(data.cache)
        cache.mkdir(mode=0o700)
        for name in self.NAMES:
            (cache / name).write_text(f"mine: {name}")
        linked = cache / ("b" * 32 + "-x.tar")
        linked.symlink_to(cache / "thesis.tar")
        size = sum(path.stat().st_size for path in folder.glob("toy*"))
        tight = data.model_copy(update={"cache_gb": 1.01 * size / 1e9})
        make_shards(folder.parent / "second", (3,))
        for place in (folder, folder.parent / "second"):
            with serving(place, {}, over) as url:
                read(url, tight)
        for name in self.NAMES:
            assert (cache / name).read_text() == f"mine: {name}"
        assert linked.is_symlink()
        assert len(list(cache.glob("*-toy-000000.tar"))) == 1  # the first made way

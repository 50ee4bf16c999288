"""HTTP server on loopback that serves a folder of shards, with failures that a test defines."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ShardServer(ThreadingHTTPServer):
    """Serves ``folder`` with range requests.

    ``faults[name]`` lists what goes wrong with the next requests for a file, None for nothing: a status to answer
    with, ("cut", bytes) or ("stall", bytes) after so many bytes, "whole" to ignore the range, ("slow", seconds), or
    ("meet", barrier) to wait for other requests.
    """

    daemon_threads = True
    block_on_close = False  # stalled requests have nobody waiting any more

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list] = defaultdict(list)
        self.requests: list[tuple[str, int]] = []
        """Name and first byte of every request."""
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/data/toy"

    def starts(self, name: str) -> list[int]:
        """First byte of every request for a file."""
        return [start for found, start in self.requests if found == name]


class _Handler(BaseHTTPRequestHandler):
    server: ShardServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.removeprefix("/data/toy/")
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        with self.server.lock:
            self.server.requests.append((name, start))
            faults = self.server.faults[name]
            fault = faults.pop(0) if faults else None
        kind, amount = fault if isinstance(fault, tuple) else (fault, 0)
        path = self.server.folder / name
        if isinstance(fault, int) or not path.is_file():
            return self.send_error(fault or 404)
        content = path.read_bytes()
        if kind == "slow":
            self.server.over.wait(amount)
        if kind == "meet":
            amount.wait(20)
        if asked and kind != "whole":
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            content = content[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:amount] if kind in ("cut", "stall") else content)
        self.wfile.flush()
        if kind == "stall":
            self.server.over.wait(60)
        if kind in ("cut", "stall"):
            self.close_connection = True
        return None

    def log_message(self, *arguments):
        """Do not log requests."""

    def handle(self):
        try:
            super().handle()
        except OSError:  # the client has given up
            self.close_connection = True


@contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()

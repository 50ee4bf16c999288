"""HTTP and S3 servers on loopback behind a proxy that adds latency and limits the rate of each connection."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from motionmae.process_signals import start_children_without_signals

_CHUNK = 1 << 16
_CHUNKS_ON_THE_WAY = 256
BUCKET = "clips"


class Link(NamedTuple):
    """Network between the loader and the server."""

    latency: float  # seconds of a round trip
    rate: float  # bytes per second of one connection, from the server


class Server(NamedTuple):
    """Running servers, seen through the slow link."""

    http: str  # URL of the folder
    s3: str  # URL of the S3 endpoint
    control: Connection

    def connections(self) -> int:
        """Return the number of connections since the last call."""
        self.control.send("connections")
        return int(self.control.recv())


@contextlib.contextmanager
def serving(folder: Path, link: Link) -> Iterator[Server]:
    """Serve ``folder`` over HTTP and in an S3 bucket, from another process. It sets the AWS_* variables."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_main, args=(folder, link, theirs), daemon=True)
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        os.environ[f"AWS_{name}"] = value
    os.environ["NO_PROXY"] = "127.0.0.1"
    with start_children_without_signals():
        process.start()
    try:
        http, s3, direct = ours.recv()
        _upload(folder, direct)
        os.environ["AWS_ENDPOINT_URL"] = os.environ["S3_ENDPOINT_URL"] = s3
        yield Server(http, s3, ours)
    finally:
        process.kill()
        process.join()


def _upload(folder: Path, endpoint: str) -> None:
    import s3fs

    bucket = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
    bucket.mkdir(BUCKET)
    for path in sorted(filter(Path.is_file, folder.rglob("*"))):
        bucket.put_file(str(path), f"{BUCKET}/{path.relative_to(folder)}")


def _main(folder: Path, link: Link, control: Connection) -> None:
    """Run the servers until the process is killed."""
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # as S3: connections stay open
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    _, s3_port = moto.get_host_and_port()
    asyncio.run(_serve(folder, s3_port, link, control))


async def _serve(folder: Path, s3_port: int, link: Link, control: Connection) -> None:
    from aiohttp import web

    application = web.Application()
    application.add_routes([web.static("/", folder)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    http_port = runner.addresses[0][1]
    opened: list[int] = []
    ports = [await _start_proxy(port, link, opened) for port in (http_port, s3_port)]
    http, s3 = (f"http://127.0.0.1:{port}" for port in ports)
    control.send((http, s3, f"http://127.0.0.1:{s3_port}"))
    while True:
        await asyncio.to_thread(control.recv)
        control.send(len(opened))
        opened.clear()


async def _start_proxy(target: int, link: Link, opened: list[int]) -> int:
    """Start a proxy of the port ``target``. Return its own port. Each connection is added to ``opened``."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(target)
        await asyncio.sleep(link.latency)  # the round trip of the TCP handshake
        there, back = await asyncio.open_connection("127.0.0.1", target)
        with contextlib.suppress(OSError):
            await asyncio.gather(
                _forward(reader, back, link.latency / 2, float("inf")),
                _forward(there, writer, link.latency / 2, link.rate),
            )

    server = await asyncio.start_server(connect, "127.0.0.1", 0, limit=1 << 20)
    return int(server.sockets[0].getsockname()[1])


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, rate: float) -> None:
    """Forward bytes, each ``delay`` seconds late, until one side closes the connection."""
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_ON_THE_WAY)

    async def read() -> None:
        clock = asyncio.get_running_loop().time
        free = clock()  # time at which the line can send the next byte
        while data := await reader.read(_CHUNK):
            free = max(free, clock()) + len(data) / rate
            await on_the_way.put((free + delay, data))
        await on_the_way.put((free + delay, b""))

    async def write() -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await on_the_way.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    await asyncio.gather(read(), write())

"""The exporter of a node: a process of its own, so that it can be scraped while the trainer hangs in a collective.

It is started by the node's first rank before that touches the device, reads its settings from standard input, and ends
with it: at the word ``end`` because the run finished, was stopped or interrupted, or could not be what a person asked
for; at the end of the pipe because the trainer crashed or was killed. In the second case the discovery file stays, and
Prometheus sees the node go down.
"""

import argparse
import errno
import ipaddress
import json
import logging
import select
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from monitoring.collector import NodeCollector
from monitoring.discovery import Target, withdraw_beyond
from monitoring.gpu import open_gpus
from monitoring.host import Host
from motionmae.distributed.network import ipv4_of_interface

logger = logging.getLogger("monitoring.exporter")

END = "end"
END_AFTER_SCRAPE = "end after scrape"
_SCRAPED_LATELY = 150.0
"""Seconds within which somebody must have scraped for it to be worth waiting for the next time."""


@dataclass(frozen=True)
class Settings:
    """What an exporter needs to know."""

    run: str
    """Name of the run."""
    run_folder: str
    node: int
    """Number of this node in the run."""
    nodes: int
    snapshots: str
    """Folder of the node's snapshots."""
    discovery: str
    """Folder of the target files."""
    address: str
    """IP address or interface to listen on."""
    port: int
    ports: int
    linger_seconds: float
    tls_certificate: str = ""
    tls_key: str = ""

    def as_line(self) -> str:
        """What the exporter reads first."""
        return json.dumps(asdict(self)) + "\n"


def listen(settings: Settings, collector: NodeCollector) -> tuple[Callable[[], None], str]:
    """Serve ``collector`` on the first free port; returns what stops it, and its HOST:PORT.

    Raises:
        OSError: if there is no such address, certificate or free port.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    host = ip_address(settings.address)
    last = settings.port + settings.ports - 1
    for port in range(settings.port, last + 1):
        try:
            server, _ = start_http_server(
                port, host, registry, settings.tls_certificate or None, settings.tls_key or None
            )
        except OSError as error:
            if port < last:
                continue
            if error.errno == errno.EADDRINUSE:
                raise OSError(taken(settings, host)) from error
            raise
        name = f"[{host}]" if ":" in host else host
        return server.shutdown, f"{name}:{server.server_port}"
    raise AssertionError("settings.ports is at least 1")


def taken(settings: Settings, host: str) -> str:
    """What to say where no port is free."""
    first, last = settings.port, settings.port + settings.ports - 1
    which = f"port {first} of {host} is" if first == last else f"ports {first} to {last} of {host} are"
    return f"{which} taken: set monitoring.ports={settings.ports + 10} to have more tried, or monitoring.port=0 for any"


def ip_address(address: str) -> str:
    """The address itself, or that of the interface of this name.

    Raises:
        OSError: if there is no such interface, or it has no IPv4 address.
    """
    with suppress(ValueError):
        return str(ipaddress.ip_address(address))
    try:
        return ipv4_of_interface(address)
    except OSError as error:
        raise OSError(error.errno, f"no network interface {address} with an address: {error.strerror}") from error


def serve(settings: Settings) -> None:
    """Be the exporter of a node until the trainer says so or is gone."""
    disable_created_metrics()
    books = Path(settings.run_folder) if settings.node == 0 else None
    collector = NodeCollector(Path(settings.snapshots), Host(Path(settings.run_folder).parent), open_gpus(), books)
    with closing(collector):
        tell(settings, collector)


def tell(settings: Settings, collector: NodeCollector) -> None:
    """Serve and announce ``collector`` until the trainer says so or is gone."""
    stop, address = listen(settings, collector)
    folder = Path(settings.discovery)
    target = Target(settings.run, settings.node, address, bool(settings.tls_certificate))
    try:
        if settings.node == 0:
            withdraw_beyond(folder, settings.run, settings.nodes)
        target.publish(folder)
    except OSError as error:
        logger.warning("http://%s/metrics is not announced in %s (%s); training goes on", address, folder, error)
    word = sys.stdin.readline().strip()
    collector.refresh()
    if word == END_AFTER_SCRAPE:
        linger(collector, settings.linger_seconds)
    if word:
        with suppress(OSError):
            target.withdraw(folder)
    stop()


def linger(collector: NodeCollector, seconds: float) -> None:
    """Wait for the scrape that sees the last values, if there was one lately and for as long as the trainer lives."""
    asked = time.monotonic()
    seen = collector.last_scrape
    if seen is None or asked - seen > _SCRAPED_LATELY:
        return
    while collector.last_scrape == seen and time.monotonic() < asked + seconds:
        gone, _, _ = select.select([sys.stdin], [], [], 0.1)
        if gone:
            return
    time.sleep(0.2)  # until the answer is on its way


def main() -> int:
    """Entry point; whatever goes wrong is one warning, for training does without."""
    argparse.ArgumentParser(
        prog="python -m monitoring.exporter",
        description="Serve the metrics of a node; training starts this and gives the settings on standard input.",
    ).parse_args()
    logging.basicConfig(format="exporter: %(message)s", level=logging.INFO)
    settings = Settings(**json.loads(sys.stdin.readline()))
    try:
        serve(settings)
    except Exception as error:
        logger.warning("no metrics of node %d (%s); training goes on", settings.node, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

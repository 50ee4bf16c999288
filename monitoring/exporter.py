"""Prometheus exporter of a node: a separate process that still answers when the trainer hangs in a collective.

The node's first rank starts the exporter before it touches the device, and writes the settings to the exporter's
standard input. The exporter ends with the trainer. It reads ``end`` after a finish, a stop, an interrupt or a user
error. If the trainer crashed or was killed, it reads the end of the pipe: the Prometheus target file (file_sd) stays,
and Prometheus reports the node as down.
"""

import argparse
import errno
import ipaddress
import json
import logging
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from monitoring.collector import NodeCollector
from monitoring.discovery import Target, withdraw_surplus
from monitoring.gpu import open_gpus
from monitoring.host import Host

logger = logging.getLogger("monitoring.exporter")

END = "end"
END_AFTER_SCRAPE = "end after scrape"
_RECENT_SCRAPE_SECONDS = 150.0
"""The exporter waits for a last scrape only if the previous scrape is at most this old."""


@dataclass(frozen=True)
class Settings:
    """Settings that the trainer sends to the exporter."""

    run: str
    run_folder: str
    node: int
    """Index of this node in the run."""
    nodes: int
    snapshots: str
    """The node's snapshot folder."""
    discovery: str
    """Folder of the Prometheus target files (file_sd)."""
    address: str
    """IP address or interface to listen on."""
    port: int
    ports: int
    linger_seconds: float
    tls_certificate: str = ""
    tls_key: str = ""

    def as_line(self) -> str:
        """Format the settings as the first line that the exporter reads."""
        return json.dumps(asdict(self)) + "\n"


def listen(settings: Settings, collector: NodeCollector) -> tuple[Callable[[], None], str]:
    """Serve ``collector`` on the first free port. Returns a function that stops the server, and HOST:PORT.

    Raises:
        OSError: if the address or the certificate is invalid, or no port is free.
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
                raise OSError(_ports_in_use(settings, host)) from error
            raise
        name = f"[{host}]" if ":" in host else host
        return server.shutdown, f"{name}:{server.server_port}"
    raise AssertionError("settings.ports is at least 1")


def _ports_in_use(settings: Settings, host: str) -> str:
    first, last = settings.port, settings.port + settings.ports - 1
    which = f"port {first} of {host} is" if first == last else f"ports {first} to {last} of {host} are"
    return f"{which} in use: set monitoring.ports={settings.ports + 10} to try more, or monitoring.port=0 for any port"


def ip_address(address: str) -> str:
    """Return ``address`` if it is an IP address, else the IPv4 address of the network interface with that name.

    Raises:
        OSError: if the interface does not exist or has no IPv4 address.
    """
    with suppress(ValueError):
        return str(ipaddress.ip_address(address))
    for candidate in psutil.net_if_addrs().get(address, []):
        if candidate.family == socket.AF_INET:
            return candidate.address
    raise OSError(errno.EADDRNOTAVAIL, f"network interface {address} has no IPv4 address")


def run_exporter(settings: Settings) -> None:
    """Export the metrics of a node until the trainer ends."""
    disable_created_metrics()
    run = Path(settings.run_folder) if settings.node == 0 else None
    collector = NodeCollector(Path(settings.snapshots), Host(Path(settings.run_folder).parent), open_gpus(), run)
    with closing(collector):
        serve(settings, collector)


def serve(settings: Settings, collector: NodeCollector) -> None:
    """Serve ``collector`` and publish its Prometheus target until the trainer ends."""
    stop, address = listen(settings, collector)
    folder = Path(settings.discovery)
    target = Target(settings.run, settings.node, address, bool(settings.tls_certificate))
    try:
        if settings.node == 0:
            withdraw_surplus(folder, settings.run, settings.nodes)
        target.publish(folder)
    except OSError as error:
        logger.warning(
            "no target file in %s (%s): Prometheus will not find http://%s/metrics; training continues",
            folder,
            error,
            address,
        )
    command = sys.stdin.readline().strip()
    collector.refresh()
    if command == END_AFTER_SCRAPE:
        wait_for_last_scrape(collector, settings.linger_seconds)
    if command:
        with suppress(OSError):
            target.withdraw(folder)
    stop()


def wait_for_last_scrape(collector: NodeCollector, seconds: float) -> None:
    """Wait until Prometheus has scraped the final values; return early if it does not scrape or the trainer is gone."""
    start = time.monotonic()
    seen = collector.last_scrape
    if seen is None or start - seen > _RECENT_SCRAPE_SECONDS:
        return
    while collector.last_scrape == seen and time.monotonic() < start + seconds:
        trainer_ended, _, _ = select.select([sys.stdin], [], [], 0.1)
        if trainer_ended:
            return
    time.sleep(0.2)  # let the server send its answer


def main() -> int:
    """Run the exporter. A failure is logged as one warning, because training does not need the exporter."""
    argparse.ArgumentParser(
        prog="python -m monitoring.exporter",
        description="Serve the metrics of a node. Training starts this and writes the settings to standard input.",
    ).parse_args()
    logging.basicConfig(format="exporter: %(message)s", level=logging.INFO)
    settings = Settings(**json.loads(sys.stdin.readline()))
    try:
        run_exporter(settings)
    except Exception as error:
        logger.warning("node %d has no metrics (%s); training continues", settings.node, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

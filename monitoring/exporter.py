"""Prometheus exporter of a node: a separate process that still answers when the trainer hangs in a collective.

The node's first rank starts the exporter before it touches the device, and writes the settings to the exporter's
standard input. The exporter ends with the trainer. After a finish, a stop, an interrupt or a user error, the trainer
sends ``end``. If the trainer crashes or is killed, the pipe closes without a command: the Prometheus target file
(file_sd) stays, and Prometheus reports the node as down.
"""

import argparse
import errno
import hashlib
import ipaddress
import json
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server
from pydantic import BaseModel

from monitoring.collector import NodeCollector
from monitoring.gpu import open_gpus
from motionmae.config import MonitoringConfig
from motionmae.files import write_atomically
from motionmae.json_text import JsonModel, load_json
from motionmae.text import get_logger

logger = get_logger("monitoring.exporter")

END = "end"
END_AFTER_SCRAPE = "end after scrape"
_RECENT_SCRAPE_SECONDS = 150.0
"""The exporter waits for a last scrape only if the previous scrape is at most this old."""


class _Labels(JsonModel, extra="ignore"):
    run: str
    instance: str


class _Target(JsonModel, extra="ignore"):
    """Entry of a Prometheus file_sd target file, as far as :func:`is_target_of` reads it."""

    labels: _Labels


class Settings(BaseModel):
    """Settings that the trainer sends to the exporter as one line of JSON."""

    run: str
    output_dir: Path
    node: int  # index of this node in the run
    nodes: int
    snapshots: Path  # the node's snapshot folder
    monitoring: MonitoringConfig

    @property
    def discovery(self) -> Path:
        """Folder of the Prometheus target files (file_sd), shared by all runs."""
        return Path(self.monitoring.discovery or self.output_dir / ".sd")

    @property
    def label(self) -> str:
        """Label ``run`` of all metrics: unique, because two people can have runs of one name in one Prometheus."""
        folder = (self.output_dir / self.run).resolve()
        return f"{self.run}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]}"

    @property
    def target_file(self) -> Path:
        """Target file of this node."""
        return self.discovery / f"{self.label}-{self.node}.json"


def listen(settings: MonitoringConfig, collector: NodeCollector) -> tuple[Callable[[], None], str]:
    """Serve ``collector`` on the first free port. Return a function that stops the server, and HOST:PORT.

    Raises:
        OSError: if the address or the certificate is invalid, or no port is free.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    host = ip_address(settings.address)
    last = settings.port + settings.ports - 1
    tls = (settings.tls_certificate or None, settings.tls_key or None)
    for port in range(settings.port, last + 1):
        try:
            server, _ = start_http_server(port, host, registry, *tls)
        except OSError as error:
            if port < last:
                continue
            if error.errno == errno.EADDRINUSE:
                ports = f"ports {settings.port} to {last} of {host} are"
                if settings.ports == 1:
                    ports = f"port {last} of {host} is"
                raise OSError(
                    f"{ports} in use: set monitoring.ports={settings.ports + 10} to try more, "
                    "or monitoring.port=0 for any port"
                ) from error
            raise
        name = f"[{host}]" if ":" in host else host
        return server.shutdown, f"{name}:{server.server_port}"
    raise AssertionError("settings.ports is at least 1")


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
    """Serve the metrics of a node, and publish its Prometheus target, until the trainer ends."""
    disable_created_metrics()
    run = settings.output_dir / settings.run
    with closing(NodeCollector(settings.snapshots, open_gpus(), run, with_goodput=settings.node == 0)) as collector:
        stop, address = listen(settings.monitoring, collector)
        try:
            publish(settings, address)
        except OSError as error:
            problem = f"no target file in {settings.discovery} ({error}); let all its users write there (chmod 1777)"
            logger.warning("%s: Prometheus will not find http://%s/metrics; training continues", problem, address)
        command = sys.stdin.readline().strip()
        collector.refresh()
        if command == END_AFTER_SCRAPE:
            wait_for_last_scrape(collector, settings.monitoring.linger_seconds)
        if command:
            withdraw(settings, address)
        stop()


def target_of(settings: Settings, address: str) -> bytes:
    """Return the content of the node's target file, for the exporter at ``address``, HOST:PORT.

    The target has no label for the host name: with this label, a requeue that moves rank 0 would start new series for
    its counters, and increase() would lose the difference.
    """
    labels = {"run": settings.label, "instance": f"{settings.label}/{settings.node}"}
    if settings.monitoring.tls_certificate:
        labels["__scheme__"] = "https"
    return json.dumps([{"targets": [address], "labels": labels}], indent=1).encode()


def publish(settings: Settings, address: str) -> None:
    """Write the node's target file. Rank 0's node also deletes the files of nodes that only an earlier attempt had.

    The file is replaced atomically, because Prometheus ignores a partly written file, and on a network file system
    inotify would not announce the rest of the file.

    Raises:
        OSError: if the file cannot be written.
    """
    settings.discovery.mkdir(parents=True, exist_ok=True)
    if settings.node == 0:
        for path in settings.discovery.iterdir():
            number = path.name.removeprefix(f"{settings.label}-").removesuffix(".json")
            if number.isdecimal() and int(number) >= settings.nodes and is_target_of(path, settings.label):
                path.unlink(missing_ok=True)
    if os.path.lexists(settings.target_file) and not is_target_of(settings.target_file, settings.label):
        raise FileExistsError(f"{settings.target_file} was not written by this run")
    write_atomically(settings.target_file, target_of(settings, address))


def is_target_of(path: Path, label: str) -> bool:
    """Return whether a file has the name and the content of a target file of the run with this label."""
    if path.is_symlink():
        return False
    try:
        (target,) = load_json(path, list[_Target])
    except (OSError, ValueError):
        return False
    return target.labels.run == label and f"{target.labels.instance.replace('/', '-')}.json" == path.name


def withdraw(settings: Settings, address: str) -> None:
    """Delete the node's target file, unless a later attempt has replaced it."""
    with suppress(OSError):
        if settings.target_file.read_bytes() == target_of(settings, address):
            settings.target_file.unlink()


def wait_for_last_scrape(collector: NodeCollector, seconds: float) -> None:
    """Wait until Prometheus has scraped the final values. Return early if it does not scrape, or the trainer ended."""
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
    settings = Settings.model_validate_json(sys.stdin.readline())
    try:
        run_exporter(settings)
    except Exception as error:
        logger.warning("node %d has no metrics (%s); training continues", settings.node, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

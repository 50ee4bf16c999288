"""How a run is seen from outside."""

import ipaddress
from dataclasses import dataclass

from motionmae.config.checks import at_least, check


@dataclass(frozen=True)
class MonitoringConfig:
    """The exporter that Prometheus scrapes, one process a node (docs/monitoring.md)."""

    enabled: bool = True
    """Start an exporter on every node."""
    address: str = "127.0.0.1"
    """Where the exporter listens: an IP address of the node, or the name of a network interface (eth0, ib0) that every
    node has; 127.0.0.1 is seen by a Prometheus on the same machine only. Never all interfaces at once."""
    port: int = 0
    """First port that is tried; 0 lets the system choose. The port is published in the discovery folder."""
    ports: int = 1
    """How many ports are tried from `port` on, for nodes that hold several runs."""
    tls_certificate: str = ""
    """PEM file of the certificate the exporter shows; empty: plain HTTP."""
    tls_key: str = ""
    """PEM file of its key."""
    discovery: str = ""
    """Folder of Prometheus's file_sd targets, shared by all nodes and runs; empty: RUNS/.sd."""
    linger_seconds: float = 20.0
    """How long a finished run's exporter waits to be scraped once more, where somebody scrapes it at all."""
    peak_tflops: float = 0.0
    """Peak of one rank's device that MFU is measured against; 0: the data sheet's, where the GPU is a known one."""

    def __post_init__(self) -> None:
        at_least("monitoring.port", self.port, 0)
        at_least("monitoring.ports", self.ports, 1)
        last = self.port + self.ports - 1
        check(last <= 65535, "monitoring.ports", self.ports, f"the last port would be {last}")
        at_least("monitoring.linger_seconds", self.linger_seconds, 0)
        at_least("monitoring.peak_tflops", self.peak_tflops, 0)
        check(
            bool(self.address) and not _is_unspecified(self.address),
            "monitoring.address",
            self.address,
            "name one address or interface of the node, not all of them",
        )
        check(
            bool(self.tls_certificate) == bool(self.tls_key),
            "monitoring.tls_key",
            self.tls_key,
            "monitoring.tls_certificate and monitoring.tls_key are given together or not at all",
        )


def _is_unspecified(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:  # an interface
        return False

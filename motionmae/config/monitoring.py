"""Monitoring configuration: the Prometheus exporter of a run."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from motionmae.config.section import LocalPath, Section, check


def _one_address(address: str) -> str:
    try:
        every_interface = ipaddress.ip_address(address).is_unspecified
    except ValueError:  # the name of an interface
        every_interface = not address
    if every_interface:
        raise ValueError("name one address or interface of the node, not all of them")
    return address


class MonitoringConfig(Section):
    """Exporter that Prometheus scrapes, one process per node (docs/monitoring.md)."""

    enabled: bool = True
    """Start an exporter on every node."""
    address: Annotated[str, AfterValidator(_one_address)] = "127.0.0.1"
    """Address the exporter listens on: an IP address of the node, or a network interface (eth0, ib0) that every node
    has. Only a Prometheus on the same machine reaches 127.0.0.1. All interfaces at once are refused."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """First port to try; 0 lets the system choose. The discovery folder publishes the port."""
    ports: PositiveInt = 1
    """Number of ports to try from `port` on, for nodes that host several runs."""
    tls_certificate: LocalPath = ""
    """PEM file of the exporter's TLS certificate. Empty: plain HTTP."""
    tls_key: LocalPath = ""
    """PEM file of the certificate's key."""
    discovery: LocalPath = ""
    """Folder of Prometheus file_sd targets, shared by all nodes and runs. Empty: OUTPUT_DIR/.sd."""
    linger_seconds: NonNegativeFloat = 20.0
    """Maximum time that the exporter of a finished run waits for a last scrape. It waits only if it was scraped."""
    peak_tflops: NonNegativeFloat = 0.0
    """Peak TFLOP/s of one rank's device, the reference of MFU. 0: the data sheet's value, for known GPUs."""

    @model_validator(mode="after")
    def _check(self) -> "MonitoringConfig":
        last = self.port + self.ports - 1
        check(last <= 65535, "monitoring.ports", self.ports, f"the last port would be {last}")
        check(
            bool(self.tls_certificate) == bool(self.tls_key),
            "monitoring.tls_key",
            self.tls_key,
            "monitoring.tls_certificate and monitoring.tls_key are given together or not at all",
        )
        return self

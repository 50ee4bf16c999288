"""Cluster configuration: resources that a run requests from Slurm, and its Prometheus exporter."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from motionmae.config.section import LocalPath, Section, refusal
from motionmae.config.text_types import HostList, SbatchText


class LaunchConfig(Section):
    """Resources requested from Slurm. `motionmae submit` has a flag for each key."""

    nodes: PositiveInt = 1
    """Nodes of the job."""
    ntasks_per_node: PositiveInt = 8
    """Training processes (ranks) per node, one per GPU."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs requested per node; 0 on machines without GPUs."""
    cpus_per_task: PositiveInt = 12
    """CPU cores per rank, for decoding (data.workers) and the training process. With hyper-threading, Slurm may count
    threads: add `--sbatch hint=nomultithread`."""
    time: PositiveInt = 1440
    """Time limit of one attempt of the job, in minutes; `--time` also takes HH:MM:SS and D-HH:MM:SS. A longer run
    requeues itself."""
    signal_seconds: PositiveInt = 120
    """Seconds before the time limit at which Slurm sends the signal to save. Two steps and a save must fit."""
    max_timeouts: PositiveInt = 1000
    """Time limits that a run may reach before it stops requeueing itself."""
    max_retries: NonNegativeInt = 5
    """Consecutive failures without a new checkpoint that are retried."""
    spares: NonNegativeInt = 0
    """Nodes to request beyond `nodes`. They wait, and take the place of a node that is lost or fails."""
    min_nodes: NonNegativeInt = 0
    """Without a spare, continue inside the allocation on at least this many nodes. 0: queue again for all nodes."""
    standby: bool = True
    """Keep a second, waiting process per rank, which has made its imports and takes over when an attempt fails."""
    heartbeat_seconds: NonNegativeInt = 5
    """Seconds without an answer after which a node counts as lost. 0: only Slurm decides (SlurmdTimeout)."""
    chain: NonNegativeInt = 0
    """Jobs that wait behind the run's job (sbatch --dependency=singleton) and continue the run where Slurm does not
    requeue it: PreemptMode=CANCEL, a limit without requeue, a node without scontrol."""
    preflight_seconds: PositiveInt = 120
    """Time limit of the pre-flight check of every node's device, storage and network."""
    partition: SbatchText = ""
    """Slurm partition. Empty: the cluster's default."""
    account: SbatchText = ""
    """Slurm account to charge."""
    qos: SbatchText = ""
    """Slurm quality of service."""
    constraint: SbatchText = ""
    """Required node features, for example a100."""
    exclude: HostList = ""
    """Nodes that the job must not use, as a Slurm host list, for example node[3-4]."""
    comment: SbatchText = ""
    """Free text shown by squeue."""

    def check(self) -> None:
        if self.min_nodes > self.nodes:
            raise refusal("launch.min_nodes", self.min_nodes, f"it must be at most launch.nodes={self.nodes}")
        if self.signal_seconds >= 60 * self.time:
            allowed = f"it must be less than the time limit, launch.time={self.time} minutes"
            raise refusal("launch.signal_seconds", self.signal_seconds, allowed)


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
    """IP address or network interface (eth0, ib0) of the node on which the exporter listens, not all interfaces. Only
    a Prometheus on the same machine reaches 127.0.0.1."""
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
    """Maximum time that the exporter of a finished run waits for a last scrape, if it was scraped before."""
    peak_tflops: NonNegativeFloat = 0.0
    """Peak TFLOP/s of one rank's device, the reference of MFU. 0: the data sheet's value for a known GPU."""

    def check(self) -> None:
        last = self.port + self.ports - 1
        if last > 65535:
            raise refusal("monitoring.ports", self.ports, f"the last port would be {last}; the highest is 65535")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise refusal("monitoring.tls_key", self.tls_key, "set both tls_certificate and tls_key, or neither")

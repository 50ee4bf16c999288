"""Cluster configuration: resources that a run requests from Slurm, and its Prometheus exporter."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from motionmae.config.section import LocalPath, Section, refusal
from motionmae.config.text_types import GpuType, HostList, NodeSuffix, SbatchText
from motionmae.text import excerpt

_TYPED_GPUS = re.compile(r"(?P<type>[A-Za-z][\w.-]*):(?P<number>\d+)", re.ASCII)


class LaunchConfig(Section):
    """Resources requested from Slurm. `motionmae submit` has a flag for each key."""

    nodes: PositiveInt = 1
    """Nodes of the job."""
    ntasks_per_node: PositiveInt = 8
    """Training processes (ranks) per node, one per GPU."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs requested per node, as a number or TYPE:NUMBER, for example a100:8; 0 on machines without GPUs."""
    gpu_type: GpuType = ""
    """Type of the GPUs, as Slurm names it (`sinfo -o %G`). Empty: any. TYPE:NUMBER in gpus_per_node sets it."""
    gpu_option: Literal["gpus-per-node", "gres", "gpus-per-task"] = "gpus-per-node"
    """Option of sbatch that requests the GPUs. gres: for sites that know only this form. gpus-per-task: every rank sees
    its own GPUs only."""
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
    """Nodes to request beyond `nodes`. They wait, and take the place of a node that is lost or fails. A job starts
    without them where too few nodes are free."""
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
    master_interface: NodeSuffix = ""
    """Network interface (ib0) of the node of rank 0 at which the ranks meet. Empty: the node's name decides."""
    master_suffix: NodeSuffix = ""
    """Appended to the name of the node of rank 0 (-ib0), for nodes with another name on the fast network."""

    @model_validator(mode="before")
    @classmethod
    def _split_typed_gpus(cls, values: Any) -> Any:
        """Split ``gpus_per_node: a100:8`` into ``gpu_type`` and ``gpus_per_node``."""
        gpus = values.get("gpus_per_node") if isinstance(values, Mapping) else None
        if not isinstance(gpus, str) or ":" not in gpus:
            return values
        if (found := _TYPED_GPUS.fullmatch(gpus)) is None:
            allowed = "write a number or TYPE:NUMBER, for example a100:8; the nodes of a run need one type of GPU"
            raise refusal("launch.gpus_per_node", excerpt(gpus), allowed)
        return {**values, "gpu_type": found["type"], "gpus_per_node": found["number"]}

    def check(self) -> None:
        if self.min_nodes > self.nodes:
            raise refusal("launch.min_nodes", self.min_nodes, f"it must be at most launch.nodes={self.nodes}")
        if self.signal_seconds >= 60 * self.time:
            allowed = f"it must be less than the time limit, launch.time={self.time} minutes"
            raise refusal("launch.signal_seconds", self.signal_seconds, allowed)
        if self.gpu_option == "gpus-per-task" and self.gpus_per_node % self.ntasks_per_node:
            allowed = f"{self.ntasks_per_node} tasks a node cannot share {self.gpus_per_node} GPUs equally"
            raise refusal("launch.gpu_option", self.gpu_option, allowed)
        if self.master_interface and self.master_suffix:
            raise refusal("launch.master_suffix", self.master_suffix, "launch.master_interface is set; choose one")


def _one_address(address: str) -> str:
    try:
        every_interface = ipaddress.ip_address(address).is_unspecified
    except ValueError:  # the name of an interface
        every_interface = not address
    if every_interface:
        raise ValueError("name one address or interface of the node, not all of them")
    return address


class MonitoringConfig(Section):
    """Exporter that Prometheus scrapes, one process per node (docs/operate/monitoring.md)."""

    enabled: bool = True
    """Start an exporter on every node."""
    address: Annotated[str, AfterValidator(_one_address)] = "127.0.0.1"
    """IP address or network interface (eth0, ib0) of the node on which the exporter listens, not all interfaces. Only
    a Prometheus on the same machine reaches 127.0.0.1."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """First port to try; 0 lets the system choose. The discovery folder publishes the port."""
    ports: PositiveInt = 16
    """Number of ports to try from `port` on, because a node can host several runs, of several people."""
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

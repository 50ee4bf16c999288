"""Who am I: rank, world and device, from torchrun, from srun, or alone; never silently alone."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from motionmae.config import EngineConfig
from motionmae.distributed.context import DistributedContext, choose_device
from motionmae.distributed.network import ipv4_of_interface
from motionmae.distributed.rendezvous import rank_environment
from motionmae.engine.cpu_allocator import keep_freed_memory
from motionmae.errors import UserError

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for its peers before the run fails."""


def init_distributed(engine: EngineConfig) -> DistributedContext:
    """Join the process group that the environment describes, and return this process's place in it.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun sets them come first, then the variables
    of a Slurm step; with neither, this process is a group of one. A group that exists already is used as it is.

    Raises:
        UserError: for an environment that names a place only in part, for a Slurm allocation of several tasks in
            which srun was forgotten, and for a device that is not there.
    """
    place = rank_environment(os.environ)
    rank, world, local_rank = (int(place[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = choose_device(engine.device, local_rank)
    os.environ.update(place)  # DeepSpeed asks there
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:  # else each rank would take all cores of the node
            ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks_here, 1))
    if not dist.is_initialized():
        # CPU tensors and Python objects travel over gloo in every run, so that bookkeeping needs no GPU memory.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        use_interface_towards(place["MASTER_ADDR"])
        store = dist.HashStore() if world == 1 else create_store(place, rank, world)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    return DistributedContext(rank, world, local_rank, device)


def create_store(place: Mapping[str, str], rank: int, world: int, timeout: timedelta = TIMEOUT) -> dist.TCPStore | None:
    """Where the ranks find each other: rank 0 listens at MASTER_ADDR only, where torch's own would on all interfaces.

    None under torchrun, whose agent has one already.

    Raises:
        UserError: if MASTER_ADDR is not an address of rank 0's machine that the others can reach.
        DistNetworkError: if the port is taken, or rank 0 cannot be reached.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    host, port = place["MASTER_ADDR"], int(place["MASTER_PORT"])
    if rank != 0:
        return dist.TCPStore(host, port, world, is_master=False, timeout=timeout)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        nodes = os.environ.get("SLURM_STEP_NUM_NODES", "1")
        if int(nodes) > 1 and ipaddress.ip_address(address[0]).is_loopback:
            raise UserError(
                f"on its own machine the name {host} means {address[0]}, where no other node can reach it: correct "
                "/etc/hosts there, or set MASTER_ADDR to its address in the cluster's network"
            )
        listener = socket.create_server(address[:2], family=family, backlog=4096)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise dist.DistNetworkError(f"MASTER_PORT={port} is taken on {host}") from error
        raise UserError(
            f"rank 0 cannot listen at MASTER_ADDR={host} ({error}): it must name the machine that rank 0 runs on"
        ) from error
    return dist.TCPStore(
        host, port, world, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def use_interface_towards(host: str) -> None:
    """Have gloo listen where ``host`` can reach it, unless GLOO_SOCKET_IFNAME says where.

    Left to itself gloo takes the address that the machine's own name has, which often is 127.0.1.1.
    """
    if interface := interface_towards(host):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_towards(host: str) -> str:
    """The network interface through which ``host`` is reached; empty if it cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: asks for the route
            address = probe.getsockname()[0]
        interfaces = socket.if_nameindex()
    except OSError:
        return ""
    for _, name in interfaces:
        with suppress(OSError):  # it has no IPv4 address
            if ipv4_of_interface(name) == address:
                return name
    return ""


@contextmanager
def distributed(engine: EngineConfig) -> Iterator[DistributedContext]:
    """:func:`init_distributed` for a while: a group made here is left again, unless an error ends it.

    After an error the peers may wait in a collective, and leaving in order would wait for them.
    """
    joined = dist.is_initialized()
    yield init_distributed(engine)
    if not joined:
        dist.destroy_process_group()

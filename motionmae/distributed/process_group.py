"""Set up the process group from torchrun's or Slurm's variables, or for a single process."""

import errno
import ipaddress
import os
import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from motionmae.config import EngineConfig
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.devices import choose_device
from motionmae.distributed.rendezvous import rank_environment
from motionmae.errors import UserError

TIMEOUT = timedelta(minutes=30)  # timeout of a collective


def init_distributed(engine: EngineConfig) -> DistributedContext:
    """Join the process group that :func:`rank_environment` describes, or use an existing group.

    Raises:
        UserError: the environment does not describe a rank, or the device does not exist.
    """
    environment = rank_environment(os.environ)
    rank, world, local_rank = (int(environment[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = choose_device(engine.device, local_rank)
    os.environ.update(environment)  # DeepSpeed reads them
    for name, value in engine.environment.items():
        os.environ.setdefault(name, value)
    raise_file_limit()
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it as the number of the GPU
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:  # by default every rank would use all cores of the node
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks_here, 1))
    if not dist.is_initialized():
        # gloo carries CPU tensors and Python objects in every run: bookkeeping takes no GPU memory.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        use_interface_towards(environment["MASTER_ADDR"])
        store = dist.HashStore() if world == 1 else create_store(environment, rank, world)
        # With a device, NCCL connects all ranks now and not at the first row of metrics.
        device_id = device if device.type == "cuda" and world > 1 else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT, device_id=device_id)
    return DistributedContext(rank, world, local_rank, device)


def create_store(
    environment: Mapping[str, str], rank: int, world: int, timeout: timedelta = TIMEOUT
) -> dist.TCPStore | None:
    """Create the rendezvous store, or return None under torchrun, whose agent has created a store.

    Rank 0 listens at MASTER_ADDR only; torch's own store listens on all interfaces.

    Raises:
        UserError: MASTER_ADDR does not belong to rank 0's machine, or the other ranks cannot reach MASTER_ADDR.
        DistNetworkError: the port is taken, or rank 0 cannot be reached.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    if rank != 0:
        return dist.TCPStore(host, port, world, is_master=False, timeout=timeout)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        nodes = os.environ.get("SLURM_STEP_NUM_NODES", "1")
        if int(nodes) > 1 and ipaddress.ip_address(address[0]).is_loopback:
            raise UserError(
                f"MASTER_ADDR={host} resolves to {address[0]} on rank 0's node, and no other node can reach "
                "it: correct /etc/hosts on rank 0's node, or set MASTER_ADDR to an address in the cluster's network"
            )
        listener = socket.create_server(address[:2], family=family, backlog=4096)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise dist.DistNetworkError(f"MASTER_PORT={port} is taken on {host}") from error
        raise UserError(
            f"rank 0 cannot listen on MASTER_ADDR={host} ({error}): set MASTER_ADDR to an address of rank 0's node"
        ) from error
    return dist.TCPStore(
        host, port, world, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def use_interface_towards(host: str) -> None:
    """Set GLOO_SOCKET_IFNAME, unless it is set, to the interface that reaches ``host``, if there is one.

    By default gloo listens at the address of the machine's own name, which is often 127.0.1.1. NCCL exchanges addresses
    over the first interface that it finds, which may be a bridge of containers; NCCL_SOCKET_IFNAME follows gloo's.
    """
    if name := os.environ.get("GLOO_SOCKET_IFNAME") or _interface_towards(host):
        os.environ["GLOO_SOCKET_IFNAME"] = name
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=" NCCL takes the name as a prefix


def _interface_towards(host: str) -> str | None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # looks up the route and sends nothing
            address = probe.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if address in (own.address for own in found)), None)


def raise_file_limit() -> None:
    """Raise the limit of open files, often 1,024, to the highest that the system allows.

    Each of a run's three gloo groups keeps a connection to every other rank.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # an unlimited hard limit may exceed the kernel's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def distributed(engine: EngineConfig) -> Iterator[DistributedContext]:
    """Call :func:`init_distributed`; at the end, destroy the process group if it was created here.

    An error keeps the group: other ranks may hang in a collective, and destroying the group would wait for them.
    """
    joined = dist.is_initialized()
    yield init_distributed(engine)
    if not joined:
        dist.destroy_process_group()

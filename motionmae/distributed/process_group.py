"""Set up the process group from torchrun's or Slurm's variables, or for a single process."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import psutil
import torch
import torch.distributed as dist

from motionmae.config import EngineConfig
from motionmae.distributed.context import DistributedContext
from motionmae.distributed.devices import choose_device
from motionmae.distributed.rendezvous import TORCHRUN_VARIABLES, rank_environment
from motionmae.distributed.stop_requests import StopSignals
from motionmae.distributed.store import (
    TIMEOUT,
    address_towards,
    create_store,
    reachable_master,
    refusals_told,
    wait_for_ranks,
)

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def init_distributed(engine: EngineConfig, signals: StopSignals | None = None) -> DistributedContext:
    """Join the process group that :func:`rank_environment` describes, or use an existing group.

    Raises:
        UserError: the environment does not describe a rank, the device does not exist, or another rank refuses.
        Stopped: a signal of ``signals`` arrived during the wait for other ranks.
    """
    environment = rank_environment(os.environ)
    rank, world, local_rank = (int(environment[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    environment["MASTER_ADDR"] = reachable_master(environment["MASTER_ADDR"])
    os.environ.update(environment)  # DeepSpeed reads them
    for name, value in engine.environment.items():
        os.environ.setdefault(name, value)
    raise_file_limit()
    if dist.is_initialized():
        device = choose_device(engine.device, local_rank)
        _use_device(device)
        return DistributedContext(rank, world, local_rank, device)
    use_interface_towards(environment["MASTER_ADDR"])
    with signals.immediate() if signals else nullcontext():
        store = dist.HashStore() if world == 1 else create_store(environment, rank, world)
        with refusals_told(store, rank, world):
            device = choose_device(engine.device, local_rank)
            _use_device(device)
            if store is not None and world > 1:
                where = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
                wait_for_ranks(store, rank, world, where, _kind(device))
        # gloo carries CPU tensors and Python objects in every run: bookkeeping takes no GPU memory.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # With a device, NCCL connects all ranks now and not at the first row of metrics.
        device_id = device if device.type == "cuda" and world > 1 else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT, device_id=device_id)
    return DistributedContext(rank, world, local_rank, device)


def _use_device(device: torch.device) -> None:
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it as the number of the GPU
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:  # by default every rank would use all cores of the node
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks_here, 1))


def _kind(device: torch.device) -> str:
    """Return the kind of a device: ranks on GPUs of different generations would choose different number formats."""
    if device.type == "cpu":
        return "the CPU"
    major, minor = torch.cuda.get_device_capability(device)
    return f"GPUs of compute capability {major}.{minor}"


def use_interface_towards(host: str) -> None:
    """Set GLOO_SOCKET_IFNAME, unless it is set, to the interface that reaches ``host``, if there is one.

    By default gloo listens at the address of the machine's own name, which is often 127.0.1.1. NCCL exchanges addresses
    over the first interface that it finds, which may be a bridge of containers; NCCL_SOCKET_IFNAME follows gloo's.
    """
    if name := os.environ.get("GLOO_SOCKET_IFNAME") or _interface_towards(host):
        os.environ["GLOO_SOCKET_IFNAME"] = name
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=" NCCL takes the name as a prefix


def _interface_towards(host: str) -> str | None:
    address = address_towards(host)
    interfaces = psutil.net_if_addrs().items() if address else []
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
def distributed(engine: EngineConfig, signals: StopSignals | None = None) -> Iterator[DistributedContext]:
    """Call :func:`init_distributed`; at the end, destroy the process group if it was created here.

    An error keeps the group: other ranks may hang in a collective, and destroying the group would wait for them.
    The variables of the rendezvous get their earlier values back: a job that this process submits later must not
    inherit the rank and the address of this one.
    """
    joined = dist.is_initialized()
    before = {name: os.environ.get(name) for name in (*TORCHRUN_VARIABLES, *_INTERFACES)}
    try:
        yield init_distributed(engine, signals)
        if not joined:
            dist.destroy_process_group()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

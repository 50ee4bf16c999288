"""Pre-flight check of a run: every node must compute, write to shared storage, and reach all other nodes.

A failing node is named in one sentence and not used again for this run (:mod:`slurm.attempt_log`). Every check has a
time limit, because broken hardware usually hangs rather than fails.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from monitoring.exporter import ip_address
from motionmae.distributed.process_group import raise_file_limit, use_interface_towards
from motionmae.distributed.rendezvous import INTERFACE_VARIABLE, preflight_port
from motionmae.distributed.store import MissingRanks, create_store, reachable_master, wait_for_ranks
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason
from motionmae.text import join_lines, say

_STORAGE_BYTES = 1 << 20


class BadNode(Exception):  # noqa: N818 - the node is bad, not the program
    """The node of this rank does not work. The message does not name the node."""


class Unreachable(Exception):  # noqa: N818
    """The ranks cannot reach each other. ``nodes`` lists the nodes that did not answer; empty if unknown."""

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)


def preflight(
    run: Path, rank_environment: Mapping[str, str], nodes: Sequence[str], device: torch.device, seconds: float
) -> None:
    """Check this rank's node, then the network to the nodes of all ranks. Each check may take ``seconds``.

    Raises:
        BadNode: if this node fails.
        Unreachable: if other ranks do not answer, or an all-reduce over all ranks fails.
    """
    raise_file_limit()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's communicator would otherwise be made on GPU 0
    check_within(seconds, lambda: check_device(device), f"a matrix product on {device}")
    if rank_environment["LOCAL_RANK"] == "0":
        check_within(seconds, lambda: check_storage(run / "logs"), f"writing {_STORAGE_BYTES >> 20} MiB to {run}")
    if int(rank_environment["WORLD_SIZE"]) > 1:
        check_network(rank_environment, nodes, device, seconds)


def check_within(seconds: float, check: Callable[[], None], name: str) -> None:
    """Run ``check`` in a thread. Raises BadNode if the check fails, or hangs for ``seconds`` and is abandoned."""
    running = ThreadPoolExecutor(1).submit(check)
    try:
        running.result(seconds)
    except Exception as error:
        fault = f"fails ({error})" if running.done() else f"takes longer than {seconds:.0f} s"
        raise BadNode(f"{name} {fault}") from error


def check_device(device: torch.device) -> None:
    """Multiply two matrices whose product is known; float32 holds these integers exactly."""
    ones = torch.ones(256, 256, device=device)
    if not bool((ones @ ones == 256).all()):
        raise ArithmeticError("the product is wrong")


def check_storage(folder: Path) -> None:
    """Write a file, flush it to the disk, and read it back."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".preflight-{socket.gethostname()}-{os.getpid()}"
    content = os.urandom(_STORAGE_BYTES)
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != content:
            raise OSError("the file reads back with different content")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # training itself reports a full disk when it saves
            raise
    finally:
        path.unlink(missing_ok=True)


def check_network(
    rank_environment: Mapping[str, str], nodes: Sequence[str], device: torch.device, seconds: float
) -> None:
    """Join the store of rank 0, which sees the missing ranks, then all-reduce the value 1 over all ranks."""
    rank, world, limit = int(rank_environment["RANK"]), int(rank_environment["WORLD_SIZE"]), timedelta(seconds=seconds)
    host = reachable_master(rank_environment["MASTER_ADDR"])
    interface = os.environ.get(INTERFACE_VARIABLE, "")
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    use_interface_towards(host)
    port = preflight_port(int(rank_environment["MASTER_PORT"]))
    try:
        store = create_store({**rank_environment, "MASTER_ADDR": host, "MASTER_PORT": str(port)}, rank, world, limit)
        assert store is not None, "Slurm's ranks were not started by torchrun"
    except (RuntimeError, OSError) as error:
        raise Unreachable(f"rank 0 on {nodes[0]} does not answer within {seconds:.0f} s ({error})") from error
    try:
        wait_for_ranks(store, rank, world, f"{host}:{port}", timeout=limit)
        if interface and rank_environment["MASTER_ADDR"] == nodes[0]:  # a given address wins
            os.environ["MASTER_ADDR"] = _address_of_rank_zero(store, rank, interface)
    except MissingRanks as error:
        absent = list(dict.fromkeys(nodes[other] for other in error.ranks)) if rank == 0 else []
        ranks = ", ".join(map(str, error.ranks))
        raise Unreachable(
            f"{', '.join(absent) or 'other nodes'} did not answer within {seconds:.0f} s (ranks {ranks})", absent
        ) from error
    except RuntimeError as error:
        raise Unreachable(f"rank 0 on {nodes[0]} has ended ({join_lines(error)})") from error
    try:
        backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=2 * limit, device_id=device_id
        )
        number = torch.ones(1, device=device)
        dist.all_reduce(number)
        total = number.item()  # waits for the message, which the end of the group would cut off
        dist.destroy_process_group()
    except RuntimeError as error:
        raise Unreachable(f"an all-reduce over {world} ranks fails ({join_lines(error)})") from error
    if total != world:
        raise Unreachable(f"an all-reduce over {world} ranks gave {total:g}, not {world}")


def _address_of_rank_zero(store: dist.Store, rank: int, interface: str) -> str:
    """Return the address of ``interface`` on rank 0's node. Raises UserError if the node has no such interface."""
    if rank == 0:
        try:
            store.set("master", ip_address(interface))
        except OSError as error:
            where = f"launch.master_interface={interface} is not possible on {socket.gethostname()}"
            raise UserError(f"{where} ({error}): name an interface of every node") from error
    return store.get("master").decode()


def abort(end: EndReason, reason: str) -> None:
    """Print the reason and end this process at once, even if its threads hang."""
    say(f"error: pre-flight check: {reason}", file=sys.stderr)
    os._exit(end.exit_code)

"""Rendezvous store: rank 0 listens, the other ranks connect, and every rank waits until all are there.

torch waits inside C++, where no Python signal handler runs, for up to the time limit of a collective. The waits here
are short and in Python: a rank says for whom and where it waits, obeys Ctrl-C and SIGTERM, and hears a refusal of
another rank.
"""

import errno
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from motionmae.distributed.rendezvous import host_names
from motionmae.errors import UserError
from motionmae.text import say

TIMEOUT = timedelta(minutes=30)  # of a collective, and of the wait for other ranks
FIRST_WORD = 5.0  # seconds after which a rank says for whom it waits; each further pause is twice as long
UNRESOLVED_SECONDS = 30.0  # for which the name in MASTER_ADDR may be unknown, as while a name server restarts
LINGER_SECONDS = 10.0  # for which rank 0 keeps the store after a refusal, so that the other ranks hear it
_REQUEST_SECONDS = 10.0  # of one request to the store
_LONGEST_POLL = 0.2
_MOST_NAMED = 8  # ranks in a message
_ALL, _ARRIVED, _DEVICE, _HEARD, _REFUSED = "all", "arrived", "device", "heard", "refused"


class MissingRanks(RuntimeError):  # noqa: N818
    """Ranks that did not arrive within the time limit."""

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(f"timed out waiting: {message}")  # words of a lost peer for classify_error
        self.ranks = ranks


class _Wait:
    """Pauses of a wait that talks: grows from 10 ms to _LONGEST_POLL, until ``timeout``."""

    def __init__(self, timeout: timedelta) -> None:
        self._began = time.monotonic()
        self._end = self._began + timeout.total_seconds()
        self._next_word, self._poll = FIRST_WORD, 0.01

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def pause(self, describe: Callable[[], str]) -> bool:
        """Sleep, and say ``describe()`` when it is time; return whether the time limit has passed."""
        if self.seconds > self._next_word:
            self._next_word = self.seconds + 2 * self._next_word
            say(f"{describe()} for {self.seconds:.0f} s; Ctrl-C or SIGTERM ends the wait", file=sys.stderr)
        time.sleep(self._poll)
        self._poll = min(2 * self._poll, _LONGEST_POLL)
        return time.monotonic() > self._end


def create_store(
    environment: Mapping[str, str], rank: int, world: int, timeout: timedelta = TIMEOUT
) -> dist.TCPStore | None:
    """Create the store on rank 0, or connect to it; return None under torchrun, whose agent has created a store.

    Rank 0 listens at MASTER_ADDR only; torch's own store listens on all interfaces.

    Raises:
        UserError: MASTER_ADDR cannot be resolved, does not belong to rank 0's machine, or other nodes cannot reach it.
        DistNetworkError: the port is taken, or rank 0 cannot be reached within ``timeout``.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    host, port = reachable_master(environment["MASTER_ADDR"]), int(environment["MASTER_PORT"])
    if rank != 0:
        return _connect(host, port, rank, world, timeout)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=4096)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise dist.DistNetworkError(f"MASTER_PORT={port} is taken on {host}") from error
        raise UserError(
            f"rank 0 cannot listen on MASTER_ADDR={host} ({error}): set MASTER_ADDR to an address of rank 0's node"
        ) from error
    store = dist.TCPStore(
        host, port, world, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    store.set_timeout(timedelta(seconds=_REQUEST_SECONDS))
    return store


def wait_for_ranks(
    store: dist.Store, rank: int, world: int, where: str, device: str = "", timeout: timedelta = TIMEOUT
) -> None:
    """Wait until every rank has called this function. All ranks must call this.

    Args:
        where: MASTER_ADDR:PORT, for messages.
        device: kind of the rank's device, which must be the same on all ranks.

    Raises:
        UserError: another rank has refused to start, or has another kind of device.
        MissingRanks: ranks are missing after ``timeout``.
        DistError: rank 0 has ended.
    """
    wait = _Wait(timeout)

    def missing() -> list[int]:
        return [other for other in range(world) if not store.check([_place(other)])]

    def describe() -> str:
        ranks = missing()
        return f"rank {rank} has been waiting for {len(ranks)} of {world} ranks at {where} ({_listed(ranks)})"

    def wait_for(key: str) -> None:
        while not store.check([key]):
            late = wait.pause(describe)
            _raise_refusal(store)
            if late and (ranks := missing()):
                raise MissingRanks(f"{len(ranks)} of {world} ranks did not come to {where} ({_listed(ranks)})", ranks)
        _raise_refusal(store)

    if rank == 0:
        store.set(_DEVICE, device)
    store.set(_place(rank), socket.gethostname())
    wait_for(_DEVICE)
    if (first := store.get(_DEVICE).decode()) != device:
        raise UserError(
            f"{socket.gethostname()} computes on {device} and rank 0 on {first}, but a run needs nodes of one kind: "
            "request one type of GPU with --gpus-per-node TYPE:N, or its nodes with --constraint"
        )
    if store.add(_ARRIVED, 1) == world:
        store.set(_ALL, "")
    wait_for(_ALL)
    store.set_timeout(timeout)


@contextmanager
def refusals_told(store: dist.Store | None, rank: int, world: int) -> Iterator[None]:
    """Tell a UserError of this rank to all ranks that wait in :func:`wait_for_ranks`."""
    try:
        yield
    except UserError as error:
        if store is not None and world > 1:
            try:
                if not store.check([_REFUSED]):
                    store.set(_REFUSED, f"rank {rank} on {socket.gethostname()} refused to start: {error}")
                store.add(_HEARD, 1)
                wait = _Wait(timedelta(seconds=LINGER_SECONDS))
                while rank == 0 and store.add(_HEARD, 0) < world and not wait.pause(lambda: "rank 0 refuses to start"):
                    pass
            except RuntimeError:  # rank 0 has ended
                pass
        raise


def _raise_refusal(store: dist.Store) -> None:
    if store.check([_REFUSED]):
        raise UserError(store.get(_REFUSED).decode(errors="replace"))


def _place(rank: int) -> str:
    return f"rank/{rank}"


def _listed(ranks: list[int]) -> str:
    more = f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
    return f"rank {', '.join(map(str, ranks[:_MOST_NAMED]))}{more}"


def reachable_master(host: str) -> str:
    """Return ``host``, or the address of this node in the network of the others where its name means the loopback.

    On many machines /etc/hosts gives the machine's own name the address 127.0.1.1. The other nodes know its address.

    Raises:
        UserError: ``host`` is a loopback address here, and the job has several nodes.
    """
    own = _resolve(host)
    if own is None or not ipaddress.ip_address(own).is_loopback or _variable("SLURM_STEP_NUM_NODES", "1") == "1":
        return host
    nodes = host_names(_variable("SLURM_STEP_NODELIST", "")) if _variable("SLURM_STEP_NODELIST", "") else []
    is_own_name = host != "localhost" and [host] == list(nodes[:1]) and _variable("SLURM_NODEID", "") == "0"
    for node in nodes[1:] if is_own_name else ():
        address = address_towards(node)
        if address and not ipaddress.ip_address(address).is_loopback:
            return address
    raise UserError(
        f"MASTER_ADDR={host} resolves to {own} on {socket.gethostname()}, and no other node can reach it: correct "
        "/etc/hosts on rank 0's node, or set MASTER_ADDR to an address in the cluster's network (docs/operate/site.md)"
    )


def _variable(name: str, default: str) -> str:
    return os.environ.get(name, "").strip() or default


def _resolve(host: str) -> str | None:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def address_towards(host: str) -> str | None:
    """Return this machine's IPv4 address on the route to ``host``; None without a route. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return probe.getsockname()[0]
    except OSError:
        return None


def _connect(host: str, port: int, rank: int, world: int, timeout: timedelta) -> dist.TCPStore:
    """Connect to rank 0's store, which may start much later than this rank."""
    wait, reason, unresolved = _Wait(timeout), "", 0.0
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()  # torch's own attempts cannot be interrupted
            limit = timedelta(seconds=_REQUEST_SECONDS)
            return dist.TCPStore(host, port, world, is_master=False, timeout=limit, wait_for_workers=False)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            unresolved = unresolved or wait.seconds if isinstance(error, socket.gaierror) else 0.0
        if unresolved and wait.seconds - unresolved > UNRESOLVED_SECONDS:
            raise UserError(
                f"rank {rank} on {socket.gethostname()} cannot resolve MASTER_ADDR={host} ({reason}): set MASTER_ADDR "
                "to an address of rank 0's node, or start on nodes that know each other's names"
            )
        word = f"rank {rank} has been waiting for rank 0 at {host}:{port} ({reason})"
        if wait.pause(partial(str, word)):
            raise dist.DistNetworkError(f"rank 0 does not answer at {host}:{port} within {timeout} ({reason})")

"""The pre-flight of a run: does each node's device compute, its storage keep, and do all hear each other.

A node that fails is named in one sentence, and the run is not started on it again (:mod:`slurm.attempt_log`). Every check
has a time limit, because what is broken mostly does not fail but hang.
"""

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from motionmae.distributed.process_group import create_store, use_interface_towards
from motionmae.runs.end_reason import EndReason

PORT_OFFSET = 6_000
"""The pre-flight meets at so much above MASTER_PORT, which the training itself then finds free."""
_STORAGE_BYTES = 1 << 20
_MATRIX = 256
_FULL = (errno.ENOSPC, errno.EDQUOT)
"""A full disk is full for all nodes: training says so when it saves."""


class BadNode(Exception):  # noqa: N818 - the node is what is wrong
    """The rank's own node does not work; the message is the sentence for people, without the node's name."""


class Unreachable(Exception):  # noqa: N818
    """The ranks do not hear each other.

    Args:
        sentence: for people.
        nodes: those that did not answer, as far as one can tell.
    """

    def __init__(self, sentence: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.nodes = tuple(nodes)


def preflight(run: Path, place: Mapping[str, str], nodes: Sequence[str], device: torch.device, seconds: float) -> None:
    """Check this rank's node, then the way to the others.

    Args:
        run: run folder, on the storage that all share.
        place: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
        nodes: node of each rank.
        device: what the rank will compute on.
        seconds: time limit of every single check.

    Raises:
        BadNode: if this node fails.
        Unreachable: if others do not answer, or all together do not get through.
    """
    within(seconds, lambda: check_device(device), f"a matrix product on {device}")
    if place["LOCAL_RANK"] == "0":
        within(seconds, lambda: check_storage(run / "logs"), f"writing {_STORAGE_BYTES >> 20} MiB to {run}")
    if int(place["WORLD_SIZE"]) > 1:
        check_network(place, nodes, device, seconds)


def within(seconds: float, check: Callable[[], None], what: str) -> None:
    """Do ``check`` in a thread, which is left behind if it hangs.

    Raises:
        BadNode: if it fails or does not end.
    """
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            check()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise BadNode(f"{what} takes longer than {seconds:.0f} s")
    if failures:
        raise BadNode(f"{what} fails ({failures[0]})") from failures[0]


def check_device(device: torch.device) -> None:
    """Multiply two matrices whose product is known: integers that float32 holds exactly."""
    ones = torch.ones(_MATRIX, _MATRIX, device=device)
    if not bool((ones @ ones == _MATRIX).all()):
        raise ArithmeticError("the product is wrong")


def check_storage(folder: Path) -> None:
    """Write, flush and read a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".preflight-{socket.gethostname()}-{os.getpid()}"
    content = os.urandom(_STORAGE_BYTES)
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != content:
            raise OSError("what is read is not what was written")
    except OSError as error:
        if error.errno not in _FULL:
            raise
    finally:
        path.unlink(missing_ok=True)


def check_network(place: Mapping[str, str], nodes: Sequence[str], device: torch.device, seconds: float) -> None:
    """Meet at rank 0, which knows then who is missing, and add up a number over all ranks.

    Raises:
        Unreachable: if somebody is missing, or the sum does not come out.
    """
    rank, world, limit = int(place["RANK"]), int(place["WORLD_SIZE"]), timedelta(seconds=seconds)
    use_interface_towards(place["MASTER_ADDR"])
    try:
        store = create_store({**place, "MASTER_PORT": str(int(place["MASTER_PORT"]) + PORT_OFFSET)}, rank, world, limit)
        assert store is not None, "Slurm's ranks were not started by torchrun"
    except (RuntimeError, OSError) as error:
        raise Unreachable(f"rank 0 on {nodes[0]} does not answer within {seconds:.0f} s ({error})") from error
    store.set(f"here/{rank}", "")
    if rank == 0 and (missing := _missing(store, world, limit)):
        absent = list(dict.fromkeys(nodes[other] for other in missing))
        raise Unreachable(
            f"{', '.join(absent)} did not answer within {seconds:.0f} s (ranks {', '.join(map(str, missing))})", absent
        )
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=2 * limit)
        number = torch.ones(1, device=device)
        dist.all_reduce(number)
        dist.destroy_process_group()
    except RuntimeError as error:
        raise Unreachable(f"an all-reduce over {world} ranks fails ({str(error).splitlines()[0]})") from error
    if number.item() != world:
        raise Unreachable(f"an all-reduce over {world} ranks gave {number.item():g}, not {world}")


def _missing(store: dist.TCPStore, world: int, limit: timedelta) -> list[int]:
    keys = [f"here/{rank}" for rank in range(world)]
    try:
        store.wait(keys, limit)
    except RuntimeError:
        return [rank for rank, key in enumerate(keys) if not store.check([key])]
    return []


def abort(reason: EndReason, sentence: str) -> None:
    """Say why and end this process, whatever its threads hang in."""
    print(f"error: pre-flight: {sentence}", file=sys.stderr, flush=True)
    os._exit(reason.exit_code)

"""Start-up of ranks in real processes: whom they wait for, signals, refusals of other ranks, and names of nodes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from motionmae.distributed import store
from motionmae.errors import UserError
from tests.training.launch import TIMEOUT, free_port

ROOT = Path(__file__).resolve().parents[2]
Started = subprocess.Popen[str]


class Starter:
    """Starts ranks, and ends those that are left."""

    def __init__(self) -> None:
        self.port, self.ranks = free_port(), list[Started]()

    def __call__(self, rank: int, world: int, device: str = "cpu", **variables: str) -> Started:
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": self.port}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}, "MASTER_ADDR": "127.0.0.1"}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
        words = [sys.executable, "-m", "tests.distributed.waiting_rank", device]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(words, cwd=ROOT, env=environment, text=True, **pipes)
        self.ranks.append(process)
        return process


@pytest.fixture
def start() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    for process in starter.ranks:
        process.kill()
        process.communicate()


def word_of(process: Started) -> str:
    """Return the first line that a rank prints on standard error."""
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 75)])
def test_rank_zero_says_for_whom_it_waits_and_ends_at_the_first_signal(
    start: Starter, number: signal.Signals, status: int
):
    alone = start(0, 3)
    assert f"rank 0 has been waiting for 2 of 3 ranks at 127.0.0.1:{start.port} (rank 1, 2) for" in word_of(alone)
    alone.send_signal(number)
    _, said = alone.communicate(timeout=TIMEOUT)
    assert alone.returncode == status
    assert "nothing was lost" in said


def test_another_rank_says_that_rank_zero_is_missing_and_ends_at_the_first_signal(start: Starter):
    alone = start(1, 2)
    assert f"rank 1 has been waiting for rank 0 at 127.0.0.1:{start.port} (Connection refused) for" in word_of(alone)
    alone.send_signal(signal.SIGTERM)
    alone.communicate(timeout=TIMEOUT)
    assert alone.returncode == 143


@pytest.mark.parametrize("refusing", [0, 1])
def test_every_rank_hears_that_one_refuses(start: Starter, refusing: int):
    ranks = [start(rank, 2, "cuda" if rank == refusing else "cpu") for rank in range(2)]
    said = [process.communicate(timeout=TIMEOUT)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2]
    assert "this run is for GPUs" in said[refusing]
    assert f"error: rank {refusing} on {socket.gethostname()} refused to start: this run is" in said[1 - refusing]


def test_ranks_meet_in_any_order(start: Starter):
    last = start(1, 2)
    time.sleep(1)
    assert start(0, 2).communicate(timeout=TIMEOUT)[0] == "rank 0 of 2\n"
    assert last.communicate(timeout=TIMEOUT)[0] == "rank 1 of 2\n"


def test_a_name_that_nobody_knows_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "UNRESOLVED_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"rank 1 on \S+ cannot resolve MASTER_ADDR=no-such-node\.invalid"):
        store.create_store({"MASTER_ADDR": "no-such-node.invalid", "MASTER_PORT": "29999"}, 1, 2)


def test_a_node_whose_own_name_means_the_loopback_is_found_by_its_route(monkeypatch: pytest.MonkeyPatch):
    """/etc/hosts of a Debian machine. The machine of the tests may have no route to any other."""
    for name, value in {
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NODEID": "0",
        "SLURM_STEP_NODELIST": "ours,other",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "_resolve", lambda host: {"ours": "127.0.1.1"}.get(host))
    monkeypatch.setattr(store, "address_towards", {"other": "192.0.2.7"}.get)
    assert store.reachable_master("ours") == "192.0.2.7"
    assert store.reachable_master("other") == "other"
    monkeypatch.setenv("SLURM_NODEID", "1")
    with pytest.raises(UserError, match=r"MASTER_ADDR=ours resolves to 127\.0\.1\.1 on \S+, and no other node"):
        store.reachable_master("ours")


def test_the_address_towards_a_host_is_that_of_the_route():
    assert store.address_towards("127.0.0.9") == "127.0.0.1"
    assert store.address_towards("no-such-node.invalid") is None

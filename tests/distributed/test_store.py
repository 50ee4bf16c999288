"""Start-up of ranks in real processes: whom they wait for, signals, refusals of other ranks, and names of nodes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from motionmae.distributed import store
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason, classify_error
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


class Clock:
    def __init__(self) -> None:
        self.now, self.pauses = 100.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(store, "time", found)
    return found


def test_a_wait_speaks_ever_more_seldom(clock: Clock, capsys: pytest.CaptureFixture[str]):
    wait = store._Wait(timedelta(seconds=60))
    spoken = []
    while not wait.pause(lambda: "rank 0 waits"):
        if text := capsys.readouterr().err:
            spoken.append((round(wait.seconds), text))
    assert clock.pauses[:6] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.2]
    assert set(clock.pauses[5:]) == {0.2}
    assert wait.seconds == pytest.approx(60.1, abs=0.11)
    assert [seconds for seconds, _ in spoken] == [5, 15, 46]  # pauses of 5, 10, 30 s and a little
    assert spoken[0][1] == "rank 0 waits for 5 s; Ctrl-C or SIGTERM ends the wait\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "rank 0"), (8, "rank 0, 1, 2, 3, 4, 5, 6, 7"), (10, "rank 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")],
)
def test_eight_ranks_are_named(count: int, text: str):
    assert store._listed(list(range(count))) == text


def meet(world: int, *devices: str, timeout: float = 30.0) -> list[object]:
    """Let some of ``world`` ranks meet at one store, each in a thread; return their errors."""
    shared, found = dist.HashStore(), dict[int, object]()

    def come(rank: int) -> None:
        try:
            with store.refusals_told(shared, rank, world):
                store.wait_for_ranks(shared, rank, world, "head:29500", devices[rank], timedelta(seconds=timeout))
            found[rank] = None
        except (UserError, RuntimeError) as error:
            found[rank] = error

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(len(devices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(devices))]


def test_ranks_go_on_when_all_are_there():
    assert meet(3, "the CPU", "the CPU", "the CPU") == [None, None, None]


def test_after_the_meeting_the_store_has_the_time_limit_of_collectives():
    """Before, a request waits for ten seconds at most."""
    shared = dist.HashStore()
    shared.set_timeout(timedelta(seconds=10))
    store.wait_for_ranks(shared, 0, 1, "head:29500", "the CPU", timedelta(seconds=77))
    assert shared.timeout == timedelta(seconds=77)
    assert shared.get("device") == b"the CPU"
    assert shared.get("rank/0").decode() == socket.gethostname()
    store.wait_for_ranks(dist.HashStore(), 0, 1, "head:29500")
    assert timedelta(minutes=30) == store.TIMEOUT


def test_missing_ranks_are_known_by_number():
    for error in meet(4, "the CPU", "the CPU", timeout=0.3):
        assert isinstance(error, store.MissingRanks)
        assert error.ranks == [2, 3]
        assert str(error) == "timed out waiting: 2 of 4 ranks did not come to head:29500 (rank 2, 3)"
        assert classify_error(error) is EndReason.LOST_PEERS


def test_ranks_on_devices_of_two_kinds_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "LINGER_SECONDS", 0.2)
    zero, one = meet(2, "the CPU", "GPUs of compute capability 9.0")
    here = socket.gethostname()
    assert str(one).startswith(f"{here} computes on GPUs of compute capability 9.0 and rank 0 on the CPU, but a run")
    assert str(zero).startswith(f"rank 1 on {here} refused to start: {here} computes on GPUs")


@pytest.mark.parametrize(("world", "told"), [(2, True), (1, False)])
def test_a_refusal_is_told_once_to_the_others(world: int, told: bool, monkeypatch: pytest.MonkeyPatch):
    shared = dist.HashStore()
    monkeypatch.setattr(store, "LINGER_SECONDS", 0.2)
    began = time.monotonic()
    for rank, reason in ((world - 1, "first"), (0, "second")):
        with pytest.raises(UserError, match=reason), store.refusals_told(shared, rank, world):
            raise UserError(reason)
    assert shared.check(["refused"]) is told
    if told:
        assert shared.get("refused").decode() == f"rank 1 on {socket.gethostname()} refused to start: first"
        assert shared.add("heard", 0) == 2
        assert time.monotonic() - began < 20
    with store.refusals_told(None, 0, 2):
        pass
    with pytest.raises(UserError, match="third"), store.refusals_told(None, 0, 2):
        raise UserError("third")


def test_rank_zero_keeps_its_store_until_all_have_heard(clock: Clock):
    """For ten seconds at most."""
    shared = dist.HashStore()
    with pytest.raises(UserError, match="no GPU"), store.refusals_told(shared, 0, 2):
        raise UserError("no GPU")
    assert sum(clock.pauses) == pytest.approx(10, abs=0.21)
    clock.pauses.clear()
    with pytest.raises(UserError, match="no GPU"), store.refusals_told(shared, 0, 2):  # it counts as the other
        raise UserError("no GPU")
    assert clock.pauses == []
    with pytest.raises(UserError, match="no GPU"), store.refusals_told(dist.HashStore(), 1, 2):
        raise UserError("no GPU")
    assert clock.pauses == []  # rank 0 alone keeps the store


def test_a_rank_that_never_finds_rank_zero_gives_up(clock: Clock):
    port = free_port()
    with pytest.raises(dist.DistNetworkError, match=rf"127\.0\.0\.1:{port} within 0:01:00 \(Connection refused\)"):
        store._connect("127.0.0.1", port, 1, 2, timedelta(minutes=1))
    assert sum(clock.pauses) == pytest.approx(60, abs=0.21)


def test_a_name_may_be_unknown_for_half_a_minute(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    answers: list[OSError] = []

    def connect(*_: object, **__: object) -> None:
        raise answers.pop(0) if answers else socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(store.socket, "create_connection", connect)
    answers += [socket.gaierror(-2, "unknown")] * 100 + [ConnectionRefusedError(111, "Connection refused")]
    with pytest.raises(UserError, match=r"cannot resolve MASTER_ADDR=head \(Name or service not known\)"):
        store._connect("head", 1, 1, 2, timedelta(minutes=5))
    first = sum(clock.pauses[:101])  # its time began again when the name was known
    assert sum(clock.pauses) - first == pytest.approx(30, abs=0.41)


def test_under_torchrun_the_agent_has_a_store(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert store.create_store({"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"}, 0, 2) is None


def test_the_store_of_rank_zero_is_the_one_that_others_reach():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    zero = store.create_store(address, 0, 2, timedelta(seconds=60))
    one = store.create_store(address, 1, 2, timedelta(seconds=60))
    assert zero is not None
    assert one is not None
    zero.set("a", "b")
    assert one.get("a") == b"b"
    assert zero.timeout == one.timeout == timedelta(seconds=10)  # of a request, not of the wait for ranks


@pytest.mark.parametrize(
    ("host", "own", "variables", "found"),
    [
        ("ours", "127.0.1.1", {"SLURM_STEP_NUM_NODES": "1"}, "ours"),
        ("ours", "127.0.1.1", {"SLURM_STEP_NUM_NODES": " "}, "ours"),
        ("ours", "192.0.2.1", {"SLURM_STEP_NUM_NODES": "2"}, "ours"),
        ("ours", None, {"SLURM_STEP_NUM_NODES": "2"}, "ours"),
        ("ours", "127.0.1.1", {"SLURM_STEP_NODELIST": "ours,lost,other"}, "192.0.2.7"),
        ("ours", "127.0.1.1", {"SLURM_STEP_NODELIST": "ours,loop"}, ""),
        ("ours", "127.0.1.1", {"SLURM_STEP_NODELIST": "ours"}, ""),
        ("ours", "127.0.1.1", {"SLURM_STEP_NODELIST": "other,ours"}, ""),
        ("ours", "127.0.1.1", {"SLURM_STEP_NODELIST": ""}, ""),
        ("localhost", "127.0.0.1", {"SLURM_STEP_NODELIST": "localhost,other"}, ""),
    ],
)
def test_the_address_that_others_reach(
    host: str, own: str | None, variables: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
):
    defaults = {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "ours,other"}
    for name, value in {**defaults, **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "_resolve", lambda _: own)
    monkeypatch.setattr(store, "address_towards", {"other": "192.0.2.7", "loop": "127.0.0.1"}.get)
    if found:
        assert store.reachable_master(host) == found
    else:
        with pytest.raises(UserError, match="no other node can reach it: correct"):
            store.reachable_master(host)


def test_names_are_resolved_or_unknown():
    assert store._resolve("127.0.0.1") == "127.0.0.1"
    assert store._resolve("no-such-node.invalid") is None

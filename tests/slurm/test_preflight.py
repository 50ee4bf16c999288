import contextlib
import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from motionmae.distributed.rendezvous import PREFLIGHT_OFFSET
from motionmae.errors import UserError
from motionmae.runs.end_reason import EndReason
from slurm import preflight
from slurm.preflight import BadNode, Unreachable
from tests.training.launch import run_ranks

NODES = ("node1", "node2", "node3")


def _fly(folder: str, seconds: float, absent: int = -1) -> str:
    rank_env = {key: os.environ[key] for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    rank_env |= {"LOCAL_RANK": "0", "MASTER_PORT": str(int(rank_env["MASTER_PORT"]) - PREFLIGHT_OFFSET)}
    if int(rank_env["RANK"]) == absent:
        return "absent"
    try:
        preflight.preflight(Path(folder), rank_env, NODES, torch.device("cpu"), seconds)
    except Unreachable as error:
        return f"{error} {error.nodes}"
    return "fine"


def test_working_nodes_pass_and_leave_no_file(tmp_path: Path) -> None:
    assert run_ranks(3, _fly, str(tmp_path), 60.0) == ["fine"] * 3
    assert list((tmp_path / "logs").iterdir()) == []


def _address_after(folder: str, interface: str, first: str) -> str:
    os.environ["MOTIONMAE_MASTER_INTERFACE"] = interface
    port = str(int(os.environ["MASTER_PORT"]) - PREFLIGHT_OFFSET)
    rank_env = {**os.environ, "LOCAL_RANK": "0", "MASTER_ADDR": first, "MASTER_PORT": port}
    try:
        preflight.preflight(Path(folder), rank_env, ("localhost", "node2"), torch.device("cpu"), 60.0)
    except (UserError, Unreachable) as error:
        return type(error).__name__
    return os.environ["MASTER_ADDR"]


@pytest.mark.parametrize(
    ("interface", "first", "found"),
    [
        ("lo", "localhost", ["127.0.0.1", "127.0.0.1"]),  # where the ranks of localhost meet for training
        ("nosuch0", "localhost", ["UserError", "Unreachable"]),
    ],
)
def test_training_uses_the_interface_of_the_site(interface: str, first: str, found: list[str], tmp_path: Path) -> None:
    assert run_ranks(2, _address_after, str(tmp_path), interface, first) == found


@pytest.mark.long
def test_a_missing_node_is_named(tmp_path: Path) -> None:
    first, _, _ = run_ranks(3, _fly, str(tmp_path), 5.0, 2)
    assert first == "node3 did not answer within 5 s (ranks 2) ('node3',)"


def test_unwritable_storage_is_a_fault_of_the_node(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    rank_env = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with pytest.raises(BadNode, match=r"writing 1 MiB to .* fails \("):
        preflight.preflight(tmp_path, rank_env, NODES, torch.device("cpu"), 60)


def test_a_hanging_check_is_abandoned() -> None:
    over = threading.Event()
    start = time.monotonic()
    with pytest.raises(BadNode, match="the disk takes longer than 0 s"):
        preflight.check_within(0.2, lambda: bool(over.wait(30)), "the disk")
    assert time.monotonic() - start < 10
    over.set()


def test_a_wrong_product_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, right: left)
    with pytest.raises(ArithmeticError, match="wrong"):
        preflight.check_device(torch.device("cpu"))


def test_on_a_gpu_the_number_is_read_on_the_rank_s_own_device_before_the_group_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, calls = torch.device("cuda", 3), []

    class Number:
        def item(self) -> int:
            calls.append("read")
            return 2

    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: calls.append(("set_device", chosen)))
    monkeypatch.setattr(torch, "ones", lambda *_, device: Number())
    monkeypatch.setattr(preflight, "create_store", lambda *_: object())
    monkeypatch.setattr(preflight, "wait_for_ranks", lambda *_, timeout: None)
    monkeypatch.setattr(preflight, "check_device", lambda _: calls.append("product"))
    group = preflight.dist
    monkeypatch.setattr(group, "init_process_group", lambda kind, device_id, **_: calls.append((kind, device_id)))
    monkeypatch.setattr(group, "all_reduce", lambda number: calls.append("all-reduce"))
    monkeypatch.setattr(group, "destroy_process_group", lambda: calls.append("end"))
    rank_env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    preflight.preflight(tmp_path, rank_env, NODES, device, 60)
    expected = [("set_device", device), "product", ("nccl", device), "all-reduce", "read", "end"]
    assert calls == expected


@pytest.mark.parametrize(("number", "ignored"), [("ENOSPC", True), ("EDQUOT", True), ("EIO", False)])
def test_a_full_disk_is_no_fault_of_the_node(
    number: str, ignored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(getattr(errno, number), number)

    monkeypatch.setattr(preflight.os, "fsync", fail)
    with contextlib.nullcontext() if ignored else pytest.raises(OSError, match="EIO"):
        preflight.check_storage(tmp_path / "a/logs")
    assert list((tmp_path / "a/logs").iterdir()) == []


def test_what_is_written_is_flushed_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, str]] = []

    def sync(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        synced.append((path.stat().st_size, path.name))

    monkeypatch.setattr(preflight.os, "fsync", sync)
    preflight.check_storage(tmp_path)
    assert synced == [(1 << 20, f".preflight-{socket.gethostname()}-{os.getpid()}")]
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"other")
    with pytest.raises(OSError, match="reads back with different content"):
        preflight.check_storage(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("local_rank", "world", "checks"),
    [("0", "1", ["device", "logs"]), ("1", "1", ["device"]), ("1", "2", ["device", "network"]),
     ("0", "2", ["device", "logs", "network"])],
)  # fmt: skip
def test_one_rank_of_a_node_checks_the_storage_and_all_check_the_network(
    local_rank: str, world: str, checks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(preflight, "raise_file_limit", lambda: None)
    monkeypatch.setattr(preflight, "check_device", lambda _: done.append("device"))
    monkeypatch.setattr(preflight, "check_storage", lambda folder: done.append(folder.name))
    monkeypatch.setattr(preflight, "check_network", lambda *_: done.append("network"))
    rank_env = {"LOCAL_RANK": local_rank, "WORLD_SIZE": world}
    preflight.preflight(tmp_path, rank_env, NODES, torch.device("cpu"), 60)
    assert done == checks


def test_a_check_that_fails_says_why() -> None:
    with pytest.raises(BadNode, match=r"^a product fails \(division by zero\)$"):
        preflight.check_within(60, lambda: bool(1 / 0), "a product")
    preflight.check_within(60, lambda: None, "a product")


def test_the_end_of_a_check_is_one_sentence_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(preflight.os, "_exit", left.append)
    preflight.abort(EndReason.BAD_NODE, "node n1 failed: x")
    assert left == [77]
    assert capsys.readouterr().err == "error: pre-flight check: node n1 failed: x\n"

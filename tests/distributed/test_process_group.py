import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist

from motionmae.config import EngineConfig
from motionmae.distributed import process_group
from motionmae.distributed.process_group import init_distributed, use_interface_towards
from motionmae.distributed.rendezvous import TORCHRUN_VARIABLES, preflight_port, rank_environment, training_port
from motionmae.distributed.store import create_store
from motionmae.errors import UserError
from tests.training.engine_workers import listening
from tests.training.launch import free_port, run_ranks

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08,11],login1",
}


def test_alone_is_a_group_of_one():
    found = rank_environment({"HOME": "/root"})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("0", "1", "0")


def test_torchrun_comes_before_slurm():
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    assert rank_environment({**given, **SLURM}) == given


def test_srun_gives_rank_world_and_first_host():
    found = rank_environment(SLURM)
    port = found.pop("MASTER_PORT")
    assert found == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07"}
    assert 20_000 <= int(port) < 26_000


def test_a_requeued_job_takes_another_port():
    ports = {rank_environment({**SLURM, "SLURM_RESTART_COUNT": str(count)})["MASTER_PORT"] for count in range(20)}
    assert len(ports) == 20
    assert (
        rank_environment(SLURM)["MASTER_PORT"] == rank_environment({**SLURM, "SLURM_RESTART_COUNT": "0"})["MASTER_PORT"]
    )


def test_the_pre_flight_check_and_training_never_share_a_port():
    ports = {training_port(job, restarts, step) for job in range(500) for restarts in range(9) for step in range(3)}
    assert ports.isdisjoint(preflight_port(port) for port in ports)
    assert max(map(preflight_port, ports)) < 32_768


@pytest.mark.parametrize(
    ("given", "gloo", "nccl"),
    [
        ({}, "lo", "=lo"),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, "ib0", "=ib0"),
        ({"NCCL_SOCKET_IFNAME": "^docker0"}, "lo", "^docker0"),
    ],
)
def test_gloo_and_nccl_use_the_interface_that_reaches_rank_zero(
    given: dict[str, str], gloo: str, nccl: str, monkeypatch: pytest.MonkeyPatch
):
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(key, given.get(key, "restored after the test"))
        if key not in given:
            del os.environ[key]
    use_interface_towards("127.0.0.1")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == (gloo, nccl)


def test_variables_set_in_part_are_refused():
    with pytest.raises(UserError, match="sets RANK, WORLD_SIZE but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        rank_environment({"RANK": "0", "WORLD_SIZE": "2"})


def test_forgetting_srun_is_refused_instead_of_training_alone():
    with pytest.raises(UserError, match="put `srun` before the command"):
        rank_environment({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that seems to have two GPUs; the dictionary receives what the process group and CUDA are told."""
    told: dict[str, Any] = {}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr("torch.cuda.set_device", lambda device: told.update(set_device=device))
    monkeypatch.setattr(process_group, "create_store", lambda *_: dist.HashStore())
    monkeypatch.setattr(process_group, "wait_for_ranks", lambda *_: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)  # an earlier test may have left a group
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: told.update(options, backend=backend))
    rank = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, value in rank.items():
        monkeypatch.setenv(key, value)
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(key, "restored after the test")
        del os.environ[key]
    return told


def test_a_gpu_that_is_not_there_is_refused(two_gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="local rank 2 has no GPU, torch finds 2 on this node"):
        init_distributed(EngineConfig(device="cuda"))
    assert not two_gpus


def test_nccl_connects_at_the_start_on_the_rank_s_own_gpu(two_gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    assert init_distributed(EngineConfig()).device == torch.device("cuda", 1)
    assert two_gpus["backend"] == "cpu:gloo,cuda:nccl"
    assert two_gpus["device_id"] == two_gpus["set_device"] == torch.device("cuda", 1)
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo"  # "=": not a prefix
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    init_distributed(EngineConfig(device="cpu", deterministic=True))
    assert two_gpus["device_id"] is None
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_deepspeed_gets_the_number_of_the_only_visible_gpu(two_gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert init_distributed(EngineConfig()).device == torch.device("cuda", 0)
    assert os.environ["LOCAL_RANK"] == "0"


def test_a_rank_raises_the_limit_of_open_files():
    """In a process of its own: a limit cannot be taken back."""
    source = """
import resource
from motionmae.config import EngineConfig
from motionmae.distributed.process_group import init_distributed
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
init_distributed(EngineConfig(device="cpu"))
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    found = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert found.stdout == "(512, 512)\n"


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_submitted_after_a_run_of_this_process_does_not_inherit_its_rank(
    two_gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fails: bool
):
    monkeypatch.setattr(dist, "destroy_process_group", lambda: two_gpus.update(destroyed=True))
    for key in (*TORCHRUN_VARIABLES, "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # of the user
    before = dict(os.environ)
    with pytest.raises(KeyError) if fails else nullcontext(), process_group.distributed(EngineConfig(device="cpu")):
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]) == ("0", "1", "0")
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        if fails:
            raise KeyError
    assert dict(os.environ) == before
    assert two_gpus.get("destroyed", False) is not fails


@pytest.mark.parametrize("world", [1, 2])
def test_local_ranks_listen_on_the_loopback_interface_alone(world: int):
    for addresses in run_ranks(world, listening):
        assert addresses <= {"127.0.0.1"}
        assert addresses or world == 1


def test_an_address_of_another_machine_and_a_port_that_is_taken_are_refused(monkeypatch: pytest.MonkeyPatch):
    port = free_port()
    with pytest.raises(UserError, match=r"cannot listen on MASTER_ADDR=192\.0\.2\.1 .* address of rank 0's node"):
        create_store({"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": str(port)}, 0, 2)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(dist.DistNetworkError, match="is taken"):
        create_store({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}, 0, 2)
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(UserError, match=r"resolves to 127\.0\.0\.1 on \S+, and no other node can reach it"):
        create_store({"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}, 0, 2)


@pytest.mark.parametrize(("ranks", "cores", "threads"), [("1", 9, 9), ("4", 9, 2), ("16", 9, 1)])
def test_the_ranks_of_a_node_share_its_cores(monkeypatch: pytest.MonkeyPatch, ranks: str, cores: int, threads: int):
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    process_group._use_device(torch.device("cpu"))
    assert found == []  # the user has said it
    monkeypatch.delenv("OMP_NUM_THREADS")
    process_group._use_device(torch.device("cpu"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    process_group._use_device(torch.device("cpu"))
    assert found == [threads, cores]


def test_kinds_of_devices_are_named_for_other_ranks(monkeypatch: pytest.MonkeyPatch):
    assert process_group._kind(torch.device("cpu")) == "the CPU"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, device.index))
    assert process_group._kind(torch.device("cuda", 3)) == "GPUs of compute capability 9.3"


def test_without_a_route_gloo_and_nccl_choose_for_themselves(monkeypatch: pytest.MonkeyPatch):
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(key, "restored after the test")
        del os.environ[key]
    monkeypatch.setattr(process_group, "address_towards", lambda host: None)
    use_interface_towards("192.0.2.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setattr(process_group, "address_towards", lambda host: "192.0.2.99")  # of no interface
    use_interface_towards("192.0.2.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert "NCCL_SOCKET_IFNAME" not in os.environ


def test_a_group_of_one_needs_no_network(two_gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_group, "create_store", lambda *_: pytest.fail("a store for one rank"))
    monkeypatch.setattr(process_group, "wait_for_ranks", lambda *_: pytest.fail("a wait for nobody"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    found = init_distributed(EngineConfig(device="cuda"))
    assert (found.rank, found.world, found.local_rank, found.device) == (0, 1, 0, torch.device("cuda", 0))
    assert two_gpus["device_id"] is None
    assert (two_gpus["rank"], two_gpus["world_size"]) == (0, 1)
    assert two_gpus["timeout"].total_seconds() == 1800


def test_ranks_wait_for_each_other_before_the_group(two_gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    waits: list[tuple[object, ...]] = []
    monkeypatch.setattr(process_group, "wait_for_ranks", lambda store, *rest: waits.append(rest))
    init_distributed(EngineConfig(device="cuda"))
    assert waits == [(1, 2, "127.0.0.1:1", "GPUs of compute capability 8.0")]
    monkeypatch.setattr(process_group, "create_store", lambda *_: None)  # torchrun has created one
    init_distributed(EngineConfig(device="cuda"))
    assert len(waits) == 1

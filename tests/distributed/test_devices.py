"""Devices of ranks on machines whose driver, torch build and visible GPUs are simulated."""

from pathlib import Path

import pytest
import torch

from motionmae.distributed import devices
from motionmae.distributed.devices import choose_device
from motionmae.errors import UserError

# first line of /proc/driver/nvidia/version, of the closed and of the open kernel module
OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.2.0"
NEW = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\nGCC version: 13.3.0"


class Machine:
    """The parts of a machine that decide on the device."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch
        (folder / "dev").mkdir()
        patch.setattr(devices, "_DEVICES", folder / "dev")
        patch.setattr(devices, "_DRIVER_FILE", folder / "version")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.set(0)

    def set(self, usable: int, driver: str = "", present: int = 0, cuda: str | None = "13.0") -> None:
        """``usable`` GPUs for torch, ``present`` ones that this process may open."""
        self._patch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        self._patch.setattr(torch.cuda, "device_count", lambda: usable)
        self._patch.setattr(torch.version, "cuda", cuda)
        if driver:
            (self._folder / "version").write_text(driver)
        for number in range(present):
            (self._folder / "dev" / f"nvidia{number}").touch()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_auto_is_the_cpu_only_where_no_gpu_is_meant(machine: Machine):
    assert choose_device("auto", 0, {}) == torch.device("cpu")
    assert choose_device("auto", 0, {"SLURM_GPUS_ON_NODE": "0"}) == torch.device("cpu")
    machine.set(0, OLD, present=1)
    assert choose_device("auto", 0, {"CUDA_VISIBLE_DEVICES": ""}) == torch.device("cpu")
    assert choose_device("cpu", 0, {"SLURM_STEP_GPUS": "0,1"}) == torch.device("cpu")
    machine.set(2, NEW)
    assert choose_device("auto", 1, {}) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "environment", "present"),
    [("auto", {"SLURM_GPUS_ON_NODE": "8"}, 0), ("auto", {"SLURM_JOB_GPUS": "0"}, 0), ("auto", {}, 1), ("cuda", {}, 0)],
)
def test_a_driver_that_is_too_old_is_named_with_the_wheel(
    machine: Machine, device: str, environment: dict[str, str], present: int
):
    machine.set(0, OLD, present)
    needs = rf"driver 535\.104\.05 of .* is too old for torch {torch.__version__}.* CUDA 13\.0 and needs driver 580"
    with pytest.raises(UserError, match=needs.replace("+", r"\+")) as found:
        choose_device(device, 0, environment)
    assert "install a wheel for CUDA 12 (pip install torch --index-url https://download.pytorch.org/whl/cu126" in str(
        found.value
    )
    assert "set engine.device=cpu" in str(found.value)


def test_a_build_for_cpus_and_a_missing_driver_are_named(machine: Machine):
    with pytest.raises(UserError, match=r"has no NVIDIA driver, and torch 2\S+ needs one"):
        choose_device("cuda")
    machine.set(0, NEW, cuda=None)
    with pytest.raises(UserError, match="is built for CPUs: install a wheel for CUDA"):
        choose_device("cuda")


def test_hidden_gpus_are_named(machine: Machine):
    machine.set(0, NEW)
    with pytest.raises(UserError, match=r"finds none on \S+ with CUDA_VISIBLE_DEVICES=9 \(driver 580\.65\.06\)"):
        choose_device("cuda", 0, {"CUDA_VISIBLE_DEVICES": "9"})


def test_slurm_may_show_each_task_its_own_gpu(machine: Machine):
    machine.set(1, NEW)
    task = {"SLURM_LOCALID": "3", "SLURM_GPUS_ON_NODE": "8"}
    assert choose_device("auto", 3, task) == torch.device("cuda", 0)
    for shared in ({}, {**task, "SLURM_GPUS_ON_NODE": "1"}, {**task, "TORCHELASTIC_RUN_ID": "none"}):
        with pytest.raises(UserError, match="local rank 3 has no GPU, torch finds 1 on this node"):
            choose_device("auto", 3, shared)


@pytest.mark.parametrize(
    ("environment", "asks"),
    [
        ({}, False),
        ({"SLURM_GPUS_ON_NODE": ""}, False),
        ({"SLURM_GPUS_ON_NODE": "0"}, False),
        ({"SLURM_GPUS_ON_NODE": "2"}, True),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "-1"}, False),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": ""}, False),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"SLURM_STEP_GPUS": "1"}, True),
        ({"SLURM_JOB_GPUS": "1"}, True),
        ({"SLURM_STEP_GPUS": ""}, False),
    ],
)
def test_a_process_with_gpus_of_slurm_never_computes_on_the_cpu(
    machine: Machine, environment: dict[str, str], asks: bool
):
    if asks:
        with pytest.raises(UserError, match="this run is for GPUs"):
            choose_device("auto", 0, environment)
    else:
        assert choose_device("auto", 0, environment) == torch.device("cpu")


def test_only_files_of_gpus_are_gpus(machine: Machine, tmp_path: Path):
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    assert choose_device("auto", 0, {}) == torch.device("cpu")
    (tmp_path / "dev/nvidia0").symlink_to(tmp_path / "gone")  # cannot be opened
    assert choose_device("auto", 0, {}) == torch.device("cpu")
    before = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / "dev/nvidia1").touch()
    with pytest.raises(UserError, match="this run is for GPUs"):
        choose_device("auto", 0, {})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_driver_without_a_gpu_is_none(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    machine.set(2, NEW)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="finds none on"):
        choose_device("auto", 0, {})


@pytest.mark.parametrize(
    ("cuda", "driver", "old"),
    [("13.0", "580.0", False), ("13.0", "579.9", True), ("12.8", "525.60", False), ("12.8", "524.9", True),
     ("14.0", "579.9", True), ("14.0", "580.1", False), ("11.8", "579.9", True)],
)  # fmt: skip
def test_the_oldest_driver_of_a_build(machine: Machine, cuda: str, driver: str, old: bool):
    machine.set(0, f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Sat Aug 19", cuda=cuda)
    with pytest.raises(UserError, match="is too old for" if old else "finds none on") as found:
        choose_device("cuda", 0, {})
    assert f"driver {driver}" in str(found.value)
    assert "CUDA_VISIBLE_DEVICES" not in str(found.value)


def test_every_rank_has_a_gpu_of_its_own(machine: Machine):
    machine.set(2, NEW)
    assert [choose_device("cuda", rank, {}).index for rank in (0, 1)] == [0, 1]
    for environment in ({}, {"SLURM_LOCALID": "2", "SLURM_GPUS_ON_NODE": "8"}):
        with pytest.raises(UserError, match="local rank 2 has no GPU, torch finds 2 on this node"):
            choose_device("cuda", 2, environment)

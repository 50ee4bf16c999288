"""Device of a rank: the GPU of a rank's number on its node, or the CPU; never the CPU for a run that asked for GPUs."""

import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from motionmae.errors import UserError

_DRIVERS = {12: 525, 13: 580}
"""Oldest NVIDIA driver by the major version of CUDA for which torch is built (CUDA's release notes)."""
_WHEEL = "pip install torch --index-url https://download.pytorch.org/whl/cu126; README.md has a table"
_SLURM_GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
"""Variables with the numbers of the GPUs that Slurm gave to a step or a job."""
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DEVICES = Path("/dev")


def choose_device(device: str, local_rank: int = 0, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Return a rank's device for ``engine.device``.

    ``auto`` is the CPU only on a machine without a GPU for this process.

    Raises:
        UserError: the node does not have the device, or torch cannot use the node's GPUs.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available() and not _asks_for_gpus(environment)):
        return torch.device("cpu")
    if not torch.cuda.is_available() or torch.cuda.device_count() == 0:
        raise UserError(_describe_unusable_cuda(environment))
    gpus = torch.cuda.device_count()
    if local_rank < gpus:
        return torch.device("cuda", local_rank)
    if gpus == 1 and _has_own_gpu(environment):
        return torch.device("cuda", 0)
    raise UserError(
        f"local rank {local_rank} has no GPU, torch finds {gpus} on this node ({platform.node()}): start one rank per "
        "GPU, and make all GPUs of the node visible to every rank, or one to each (Slurm's gpus-per-task=1)"
    )


def _asks_for_gpus(environment: Mapping[str, str]) -> bool:
    """Return whether Slurm gave this process GPUs, or it can open one, unless CUDA_VISIBLE_DEVICES hides them all."""
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    count = environment.get("SLURM_GPUS_ON_NODE", "0")
    return count not in ("", "0") or any(environment.get(name) for name in _SLURM_GPUS) or _can_open_gpu()


def _can_open_gpu() -> bool:
    """Return whether the node has an NVIDIA GPU that this process may open: a cgroup or container can deny it."""
    for path in _DEVICES.glob("nvidia[0-9]*"):
        with suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            return True
    return False


def _has_own_gpu(environment: Mapping[str, str]) -> bool:
    """Return whether Slurm started this rank with a GPU of its own (gpus-per-task, gpu-bind)."""
    started_by_slurm = "SLURM_LOCALID" in environment and "TORCHELASTIC_RUN_ID" not in environment
    return started_by_slurm and environment.get("SLURM_GPUS_ON_NODE") != "1"


def _describe_unusable_cuda(environment: Mapping[str, str]) -> str:
    """Return a sentence that names the driver, torch's build, and the remedy."""
    node, build = platform.node(), f"torch {torch.__version__}"
    cpu = "or set engine.device=cpu to compute on the CPU"
    if torch.version.cuda is None:
        return f"this run is for GPUs, but {build} is built for CPUs: install a wheel for CUDA ({_WHEEL}), {cpu}"
    found = re.search(r"\s((\d+)\.[\d.]+)\s", _DRIVER_FILE.read_text()) if _DRIVER_FILE.is_file() else None
    if found is None:
        return f"this run is for GPUs, but {node} has no NVIDIA driver, and {build} needs one: use another node, {cpu}"
    driver, major = found[1], int(found[2])
    needed = _DRIVERS.get(int(torch.version.cuda.split(".")[0]), max(_DRIVERS.values()))
    if major < needed:
        return (
            f"this run is for GPUs, but driver {driver} of {node} is too old for {build}, which is built for CUDA "
            f"{torch.version.cuda} and needs driver {needed} or later: install a wheel for CUDA 12 ({_WHEEL}), {cpu}"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    return (
        f"this run is for GPUs, but {build} finds none on {node}{hidden} (driver {driver}): see whether nvidia-smi "
        f"lists them there, {cpu}"
    )

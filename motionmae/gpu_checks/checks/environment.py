"""Check of driver, libraries and limits of the system."""

import os
import resource
import shutil
import sysconfig
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from motionmae.distributed.devices import choose_device
from motionmae.errors import UserError
from motionmae.gpu_checks.check import CheckError, Figures, Setting
from motionmae.planning.gpus import peak_of_device

_DESCRIPTORS = 4096  # open files that a rank of a large run may need
_LIBRARIES = ("deepspeed", "timm", "triton", "nvidia-ml-py")


def check_environment(setting: Setting) -> Figures:
    """Check that torch finds the GPU, and collect versions and limits."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)  # a run raises its soft limit to the hard one
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compiler = shutil.which("gcc") or shutil.which("cc")
    figures: Figures = {
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        **{name: _version(name) for name in _LIBRARIES},
        "driver": driver_version(),
        "nvcc": shutil.which("nvcc"),
        "cores": len(os.sched_getaffinity(0)),
        "descriptors": descriptors,
        "shared_memory_gb": _gigabytes("/dev/shm"),
        "engine_compile_possible": bool(compiler and header.is_file()),
        "notes": _notes(descriptors, bool(compiler), header),
    }
    if not setting.on_gpu:
        return figures | {"not_run": ["GPU, driver, cuDNN and NCCL"]}
    try:
        choose_device("cuda")
    except UserError as error:
        raise CheckError(str(error), figures) from error
    properties = torch.cuda.get_device_properties(0)
    return figures | {
        "gpu": torch.cuda.get_device_name(0),
        "gpus": torch.cuda.device_count(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "gpu_gb": properties.total_memory / 1e9,
        "multiprocessors": properties.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "peak_tflops": peak_of_device(torch.cuda.get_device_name(0)),
    }


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # a missing library and NVML's errors share no base class
        return None


def _notes(descriptors: int, has_compiler: bool, header: Path) -> list[str]:
    """Return sentences about limits that may disturb a large run."""
    notes = []
    if descriptors != resource.RLIM_INFINITY and descriptors < _DESCRIPTORS:
        notes.append(
            f"at most {descriptors} open files are allowed (ulimit -Hn); hundreds of ranks need {_DESCRIPTORS}"
        )
    if not has_compiler:
        notes.append("no C compiler: engine.compile cannot work")
    elif not header.is_file():
        notes.append(f"{header} is missing: engine.compile cannot work")
    if _gigabytes("/dev/shm") < 1:
        notes.append("/dev/shm is smaller than 1 GB, which NCCL may exceed")
    return notes


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _gigabytes(folder: str) -> float:
    return shutil.disk_usage(folder).total / 1e9 if Path(folder).is_dir() else 0.0

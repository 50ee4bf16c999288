"""Data-sheet values of GPUs for run estimates and MFU: peak rate, memory, and links."""

from dataclasses import dataclass

from motionmae.errors import UserError

USABLE = 0.9
"""Share of a GPU's memory that tensors may fill. The rest is for workspaces, NCCL, the CUDA context, fragmentation."""


@dataclass(frozen=True)
class Gpu:
    """Data-sheet figures of one GPU model."""

    part: str  # substring of the device's name that identifies the model
    tflops: float  # dense bfloat16 peak (V100: float16)
    gigabytes: float  # memory in 10^9 bytes
    link: float  # GB/s in one direction between the GPUs of a node, by NVLink or else PCIe


GPUS = {
    "gb200-186": Gpu("GB200", 2500.0, 186, 900),
    "b200-180": Gpu("B200", 2250.0, 180, 900),
    "h200-141": Gpu("H200", 989.0, 141, 450),
    "h100-pcie-80": Gpu("H100 PCIe", 756.0, 80, 64),
    "h100-80": Gpu("H100", 989.0, 80, 450),
    "a100-80": Gpu("A100", 312.0, 80, 300),
    "a100-40": Gpu("A100", 312.0, 40, 300),
    "a800-80": Gpu("A800", 312.0, 80, 200),
    "a40-48": Gpu("A40", 149.7, 48, 32),
    "a10g-24": Gpu("A10G", 70.0, 24, 32),
    "l40s-48": Gpu("L40S", 362.0, 48, 32),
    "v100-32": Gpu("V100", 125.0, 32, 150),
    "v100-16": Gpu("V100", 125.0, 16, 150),
}
"""GPUs by the name that `plan --gpu` takes. A longer ``part`` precedes any shorter one that it contains."""

DEFAULT = "a100-80"


def find_gpu(name: str) -> Gpu:
    """Return the entry of :data:`GPUS`, or raise a UserError if ``name`` is unknown."""
    if name not in GPUS:
        raise UserError(f"unknown GPU {name}: choose one of {', '.join(GPUS)}")
    return GPUS[name]


def peak_of_device(device: str) -> float | None:
    """Return the peak TFLOP/s of a device by the name that CUDA reports; None if the device is unknown."""
    return next((gpu.tflops for gpu in GPUS.values() if gpu.part in device), None)

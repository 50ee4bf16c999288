"""Data-sheet values of GPUs for run estimates and MFU: peak rate, memory, and links."""

import re
from dataclasses import dataclass

from motionmae.errors import UserError

USABLE = 0.9
"""Share of a GPU's memory that tensors may fill. The rest is for workspaces, NCCL, the CUDA context, fragmentation."""


@dataclass(frozen=True)
class Gpu:
    """Data-sheet figures of one GPU model."""

    part: str  # substring of the device's name that identifies the model
    tflops: float  # dense bfloat16 peak with float32 sums (V100 and T4: float16)
    gigabytes: float  # memory in 10^9 bytes
    link: float  # GB/s in one direction between the GPUs of a node, by NVLink or else PCIe
    bandwidth: float  # GB/s of its memory


GPUS = {
    "b300-270": Gpu("B300", 2500.0, 270, 900, 8000),
    "gb200-186": Gpu("GB200", 2500.0, 186, 900, 8000),
    "b200-180": Gpu("B200", 2250.0, 180, 900, 8000),
    "h200-141": Gpu("H200", 989.0, 141, 450, 4800),
    "h100-pcie-80": Gpu("H100 PCIe", 756.0, 80, 64, 2000),
    "h100-nvl-94": Gpu("H100 NVL", 835.0, 94, 300, 3900),
    "h100-80": Gpu("H100", 989.0, 80, 450, 3350),
    "a100-80": Gpu("A100", 312.0, 80, 300, 2039),
    "a100-40": Gpu("A100", 312.0, 40, 300, 1555),
    "a800-80": Gpu("A800", 312.0, 80, 200, 2039),
    "a6000-48": Gpu("RTX A6000", 154.8, 48, 32, 768),
    "a5000-24": Gpu("RTX A5000", 111.1, 24, 32, 768),
    "a4000-16": Gpu("RTX A4000", 76.7, 16, 32, 448),
    "a30-24": Gpu("A30", 165.0, 24, 100, 933),
    "a40-48": Gpu("A40", 149.7, 48, 32, 696),
    "a10g-24": Gpu("A10G", 70.0, 24, 32, 600),
    "a10-24": Gpu("A10", 125.0, 24, 32, 600),
    "l40s-48": Gpu("L40S", 362.0, 48, 32, 864),
    "l40-48": Gpu("L40", 181.0, 48, 32, 864),
    "l4-24": Gpu("L4", 121.0, 24, 32, 300),
    "rtxpro6000-96": Gpu("RTX PRO 6000 Blackwell", 503.8, 96, 64, 1792),
    "rtx6000ada-48": Gpu("RTX 6000 Ada", 364.2, 48, 32, 960),
    "rtx5090-32": Gpu("RTX 5090", 209.5, 32, 64, 1792),
    "rtx4090-24": Gpu("RTX 4090", 165.2, 24, 32, 1008),
    "rtx3090-24": Gpu("RTX 3090", 71.0, 24, 32, 936),
    "v100s-32": Gpu("V100S", 130.0, 32, 16, 1134),
    "v100-32": Gpu("V100", 125.0, 32, 150, 900),
    "v100-16": Gpu("V100", 125.0, 16, 150, 900),
    "t4-16": Gpu("T4", 65.0, 16, 16, 320),
}
"""GPUs by the name that `plan --gpu` takes. A ``part`` of several words precedes any shorter one that it contains."""

DEFAULT = "a100-80"

PUBLISHED_MFU = 0.165
"""Best published MFU of such training: 0.05 on V100 and 0.10 on A5000 (VideoMAE's code), 0.165 on A5000 (AVION)."""


def find_gpu(name: str) -> Gpu:
    """Return the entry of :data:`GPUS`, or raise a UserError if ``name`` is unknown."""
    if name not in GPUS:
        raise UserError(f"unknown GPU {name}: choose one of {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of_device(device: str) -> Gpu | None:
    """Return the first entry of :data:`GPUS` whose ``part`` is in the name that CUDA reports; None if unknown.

    Entries of one part differ only in memory and links. Slower variants of a card (Ti, D, Laptop, Max-Q) and slices of
    one (MIG) are unknown.
    """
    if is_slice(device):
        return None
    for gpu in GPUS.values():
        if re.search(rf"(?<!\w){re.escape(gpu.part)}(?!\w| Ti\b| D\b| Laptop| Max-Q)", device):
            return gpu
    return None


def is_slice(device: str) -> bool:
    """Return whether the name that CUDA reports is that of a MIG instance, a part of a GPU."""
    return " MIG " in device


def peak_of_device(device: str) -> float | None:
    """Return the peak TFLOP/s of a device by the name that CUDA reports; None if the device is unknown."""
    gpu = gpu_of_device(device)
    return gpu.tflops if gpu else None

"""Data-sheet figures of GPUs, and the entry of a device."""

import pytest

from motionmae.planning.gpus import DEFAULT, GPUS, PUBLISHED_MFU, USABLE, find_gpu, gpu_of_device, is_slice

# NVIDIA's data sheets: dense TFLOP/s, GB, GB/s in one direction of NVLink or PCIe, GB/s of the memory
SHEETS = """
b300-270      2500  270 900 8000
gb200-186     2500  186 900 8000
b200-180      2250  180 900 8000
h200-141      989   141 450 4800
h100-pcie-80  756   80  64  2000
h100-nvl-94   835   94  300 3900
h100-80       989   80  450 3350
a100-80       312   80  300 2039
a100-40       312   40  300 1555
a800-80       312   80  200 2039
a6000-48      154.8 48  32  768
a5000-24      111.1 24  32  768
a4000-16      76.7  16  32  448
a30-24        165   24  100 933
a40-48        149.7 48  32  696
a10g-24       70    24  32  600
a10-24        125   24  32  600
l40s-48       362   48  32  864
l40-48        181   48  32  864
l4-24         121   24  32  300
rtxpro6000-96 503.8 96  64  1792
rtx6000ada-48 364.2 48  32  960
rtx5090-32    209.5 32  64  1792
rtx4090-24    165.2 24  32  1008
rtx3090-24    71    24  32  936
v100s-32      130   32  16  1134
v100-32       125   32  150 900
v100-16       125   16  150 900
t4-16         65    16  16  320
"""


def test_the_figures_are_those_of_the_data_sheets() -> None:
    rows = {name: tuple(map(float, figures)) for name, *figures in map(str.split, SHEETS.strip().splitlines())}
    assert {name: (gpu.tflops, gpu.gigabytes, gpu.link, gpu.bandwidth) for name, gpu in GPUS.items()} == rows
    assert find_gpu(DEFAULT) is GPUS["a100-80"]
    assert (USABLE, PUBLISHED_MFU) == (0.9, 0.165)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA B300 SXM6 AC", "b300-270"), ("NVIDIA GB200", "gb200-186"), ("NVIDIA B200", "b200-180"),
        ("NVIDIA H200", "h200-141"), ("NVIDIA H100 PCIe", "h100-pcie-80"), ("NVIDIA H100 NVL", "h100-nvl-94"),
        ("NVIDIA H100 80GB HBM3", "h100-80"), ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A800-SXM4-80GB", "a800-80"),
        ("NVIDIA RTX A6000", "a6000-48"), ("NVIDIA RTX A5000", "a5000-24"), ("NVIDIA RTX A4000", "a4000-16"),
        ("NVIDIA A30", "a30-24"), ("NVIDIA A40", "a40-48"), ("NVIDIA A10G", "a10g-24"), ("NVIDIA A10", "a10-24"),
        ("NVIDIA L40S", "l40s-48"), ("NVIDIA L40", "l40-48"), ("NVIDIA L4", "l4-24"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtxpro6000-96"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada-48"), ("NVIDIA GeForce RTX 5090", "rtx5090-32"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24"), ("NVIDIA GeForce RTX 3090", "rtx3090-24"),
        ("Tesla V100S-PCIE-32GB", "v100s-32"), ("Tesla V100-SXM2-32GB", "v100-32"), ("Tesla T4", "t4-16"),
    ],
)  # fmt: skip
def test_a_device_has_the_entry_of_its_card(device: str, name: str) -> None:
    assert gpu_of_device(device) == GPUS[name]


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA L400",
        "AMD Instinct MI300X",
    ],
)
def test_variants_and_slices_of_a_card_are_unknown(device: str) -> None:
    assert gpu_of_device(device) is None
    assert is_slice(device) is ("MIG" in device)

"""How much computing a step is, and what a device could do at most: from these comes MFU."""

import sys
from dataclasses import dataclass

from motionmae.config import Config

PEAK_TFLOPS = {
    "GB200": 2500.0, "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "A800": 312.0,
    "A40": 149.7, "A10G": 70.0, "L40S": 362.0, "V100": 125.0,
}  # fmt: skip
"""Dense bfloat16 (V100: float16) peak by a part of the device's name; the vendor's data sheets."""


@dataclass(frozen=True)
class Work:
    """What one clip takes in pre-training."""

    flops: int
    """Of the model, forward and backward, a multiplication and an addition counted as two."""
    tokens: int
    """Cubes that go through the encoder."""


def pretraining_work(config: Config) -> Work:
    """What a clip takes under ``config``."""
    from motionmae.models.counting import step_flops  # imports torch
    from motionmae.models.masking import masked_cubes

    clip = config.clip
    hidden = masked_cubes(config.mask.kind, config.mask.ratio, clip.slots, clip.cubes_per_slot)
    return Work(step_flops(config).model, clip.cubes - hidden)


def peak_flops(config: Config) -> float | None:
    """Operations a second that this rank's device can do at most; None where nobody knows."""
    if config.monitoring.peak_tflops:
        return config.monitoring.peak_tflops * 1e12
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    name = torch.cuda.get_device_name()
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)

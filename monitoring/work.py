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
    """What one clip takes in a step."""

    flops: int
    """Of the model, forward and backward, a multiplication and an addition counted as two."""
    tokens: int
    """Cubes that go through the encoder."""


def work_of(config: Config) -> Work:
    """What a clip takes in the task of ``config``; a head's share of fine-tuning is left out, as far below 1 %."""
    from motionmae.models.counting import forward_gflops, step_flops  # imports torch
    from motionmae.models.masking import masked_cubes

    clip = config.clip
    if config.task == "finetune":
        passes = 3 if config.finetune.mode == "full" else 1  # a backward pass takes twice the forward pass
        return Work(int(2e9 * passes * forward_gflops(config)), clip.cubes)
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

"""How much computing a step is, and what a device could do at most: from these comes MFU."""

import sys
from dataclasses import dataclass

from motionmae.config import Config
from motionmae.planning.gpus import peak_of_device


@dataclass(frozen=True)
class FlopsPerClip:
    """What one clip takes in a step."""

    flops: int
    """Of the model, forward and backward, a multiplication and an addition counted as two."""
    tokens: int
    """Cubes that go through the encoder."""


def flops_per_clip_of(config: Config) -> FlopsPerClip:
    """What a clip takes in the task of ``config``; a head's share of fine-tuning is left out, as far below 1 %."""
    from motionmae.planning.flops import step_cubes, step_flops  # imports torch

    tokens = config.clip.cubes if config.task == "finetune" else step_cubes(config).visible
    return FlopsPerClip(step_flops(config).model, tokens)


def peak_flops(config: Config) -> float | None:
    """Operations a second that this rank's device can do at most; None where nobody knows."""
    if config.monitoring.peak_tflops:
        return config.monitoring.peak_tflops * 1e12
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    peak = peak_of_device(torch.cuda.get_device_name())
    return peak * 1e12 if peak else None

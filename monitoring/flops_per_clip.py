"""FLOPs of a clip and peak FLOP/s of a device, from which the MFU is computed."""

import sys
from dataclasses import dataclass

from motionmae.config import Config
from motionmae.planning.gpus import peak_of_device


@dataclass(frozen=True)
class FlopsPerClip:
    """FLOPs and tokens of one clip in a training step."""

    flops: int
    """Forward and backward pass of the model. A multiply-add counts as two."""
    tokens: int
    """Cubes that pass through the encoder."""


def flops_per_clip_of(config: Config) -> FlopsPerClip:
    """Count the FLOPs and tokens of one clip in the task of ``config``, without a classifier's head (far below 1 %)."""
    from motionmae.planning.flops import step_cubes, step_flops  # imports torch

    tokens = config.clip.cubes if config.task == "finetune" else step_cubes(config).visible
    return FlopsPerClip(step_flops(config).model, tokens)


def peak_flops(config: Config) -> float | None:
    """Return the peak FLOP/s of this rank's device; None if unknown."""
    if config.monitoring.peak_tflops:
        return config.monitoring.peak_tflops * 1e12
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    peak = peak_of_device(torch.cuda.get_device_name())
    return peak * 1e12 if peak else None

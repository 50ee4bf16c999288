"""A model small enough to train in every test, and clips that follow from a formula."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from motionmae.config import ClipConfig, Config, MaskConfig, ModelConfig, OptimConfig, TargetConfig

TINY = Config(
    clip=ClipConfig(frames=8, size=32, cube_size=8),  # 4 x 4 x 4 cubes
    model=ModelConfig(size="vit_ti", width=48, depth=2, heads=3, decoder_width=24, decoder_heads=2, decoder_depth=2),
    mask=MaskConfig(kind="random", ratio=0.75),
    target=TargetConfig(),
    optim=OptimConfig(global_batch_size=32),
)


PINS = (Path(__file__).resolve().parents[2] / "constraints.txt").read_text().splitlines()
needs_pinned_torch = pytest.mark.skipif(
    f"torch=={torch.__version__.partition('+')[0]}" not in PINS,
    reason="stored losses begin with the random weights of the torch of constraints.txt; 2.9 draws others",
)


def tiny(**sections: dict[str, Any]) -> Config:
    """Return :data:`TINY` with some fields of some sections changed: ``tiny(mask={"ratio": 0.5})``."""
    return TINY.updated(sections)


def moving_clips(config: Config, batch: int = 4, first: int = 0) -> Tensor:
    """Return uint8 (B, T, H, W, 3): waves. The number of the clip sets their direction, speed and colours."""
    clip = config.clip
    number = torch.arange(first, first + batch, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    time = torch.arange(clip.frames, dtype=torch.float64).view(1, -1, 1, 1, 1)
    row = torch.arange(clip.size, dtype=torch.float64).view(1, 1, -1, 1, 1)
    column = torch.arange(clip.size, dtype=torch.float64).view(1, 1, 1, -1, 1)
    colour = torch.arange(3, dtype=torch.float64)
    angle = number * 2.4
    along = row * angle.sin() + column * angle.cos()
    wave = (along * (0.25 + 0.05 * (number % 3)) + time * (0.3 + 0.1 * (number % 5)) + colour * (0.5 + number)).sin()
    ripple = (row * 1.3 + column * 0.9 + number).sin()
    return (127.5 + 110 * wave + 10 * ripple).round().clamp(0, 255).to(torch.uint8)


def noise_clips(config: Config, batch: int = 4, seed: int = 0) -> Tensor:
    """Return uint8 (B, T, H, W, 3) of independent uniform pixels, in which no layout mistake can hide."""
    clip = config.clip
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8, generator=generator)

"""A model with MotionMAE's interface that is small enough for every case, and its batches."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from motionmae.config import Config, EngineConfig, OptimConfig
from motionmae.models.motionmae import Losses

WIDTH = 24


class TinyModel(nn.Module):
    """Two losses over odd-sized layers: no size divides by 2 and 3 ranks, and ZeRO must pad."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rise = nn.Linear(WIDTH, 37)
        self.norm = nn.LayerNorm(37)
        self.space = nn.Linear(37, WIDTH)
        self.time = nn.Linear(37, 5, bias=False)

    def forward(self, clips: Tensor, seeds: Tensor, flow: Tensor | None = None) -> Losses:
        hidden = self.norm(torch.tanh(self.rise(clips)))
        space = (self.space(hidden) - clips).pow(2).mean()
        time = (self.time(hidden) - clips[:, :5] * seeds[:, None]).pow(2).mean()
        return Losses(space + time, space, time)


class TinyBlocks(TinyModel):
    """A TinyModel with matrices in blocks, which Muon trains: a wide, a tall and a square one of odd sizes.

    Their gradients have full rank for 12 samples: Muon amplifies rounding in directions without a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(37, 11), nn.Linear(11, 11, bias=False), nn.Linear(11, 37)])

    def forward(self, clips: Tensor, seeds: Tensor, flow: Tensor | None = None) -> Losses:
        hidden = torch.tanh(self.rise(clips))
        for block in self.blocks:
            hidden = torch.tanh(block(hidden))
        hidden = self.norm(hidden)
        space = (self.space(hidden) - clips).pow(2).mean()
        time = (self.time(hidden) - clips[:, :5] * seeds[:, None]).pow(2).mean()
        return Losses(space + time, space, time)


def config(
    zero: int = 0,
    *,
    batch: int = 12,
    micro_batch_size: int = 2,
    precision: str = "fp32",
    clip: float = 0,
    optimizer: str = "adamw",
) -> Config:
    return Config(
        name="tiny",
        optim=OptimConfig(
            name=optimizer,
            global_batch_size=batch,
            epochs=2,
            warmup_epochs=1,
            base_lr=0.2,
            clip_grad=clip,
            weight_decay=0.1,
            min_lr=0,
        ),
        engine=EngineConfig(zero_stage=zero, micro_batch_size=micro_batch_size, precision=precision, device="cpu"),
    )


def step_inputs(step: int, batch: int = 12) -> tuple[Tensor, Tensor]:
    """The samples of a step over all ranks, for any number of ranks."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(batch, WIDTH, generator=generator), torch.arange(batch) % 3


def micro_batches(
    step: int, rank: int, world: int, micro_batch_size: int, batch: int = 12
) -> Iterator[tuple[Tensor, ...]]:
    """Share of a rank in a step: micro-batch ``a`` of rank ``r`` starts at ``(a * world + r) * micro_batch_size``."""
    clips, seeds = step_inputs(step, batch)
    for start in range(rank * micro_batch_size, batch, world * micro_batch_size):
        yield clips[start : start + micro_batch_size], seeds[start : start + micro_batch_size]

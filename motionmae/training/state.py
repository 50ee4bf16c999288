"""Progress of a run that a checkpoint stores besides tensors, and its random state."""

from dataclasses import dataclass, field

import numpy as np
import torch

from motionmae.data.rng import keyed_bits


@dataclass
class TrainState:
    """How far a run is. Free of world size: every count is over all ranks."""

    step: int = 0
    """Steps taken, those skipped included; sets the learning rate."""
    data_step: int = 0
    """Steps' worth of samples consumed. Apart from ``step``, so that a run can go back and take other samples."""
    skipped: int = 0
    """Steps skipped because loss or gradient was not finite."""
    recently_skipped: list[int] = field(default_factory=list)
    """The last of these steps, for the budget of :mod:`motionmae.training.nonfinite`."""
    rollbacks: list[int] = field(default_factory=list)
    """``data_step`` of each return to an earlier checkpoint because of them."""
    corrupt: dict[str, str] = field(default_factory=dict)
    """Samples that some rank could not read, in this attempt or an earlier one: id -> reason."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make torch's and numpy's generators a function of (seed, step, rank): a checkpoint need hold no state of theirs.

    Drop path draws from torch's, timm's mixup from numpy's.
    """
    bits = keyed_bits("step", seed, step, rank)
    torch.manual_seed(bits % 2**63)
    np.random.seed(bits % 2**32)

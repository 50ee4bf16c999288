"""Progress of a run as stored in its checkpoints, and the seeds of a step."""

from dataclasses import dataclass, field

import numpy as np
import torch

from motionmae.data.rng import keyed_bits


@dataclass
class TrainState:
    """Progress of a run. Every count is over all ranks and does not depend on their number."""

    step: int = 0  # steps taken, including skipped ones; determines the learning rate
    data_step: int = 0
    """Position in the data, in steps. A rollback resets ``step`` but not ``data_step``: training uses new samples."""
    skipped: int = 0  # steps skipped for a non-finite loss or gradient
    recently_skipped: list[int] = field(default_factory=list)
    """Recently skipped steps, which :mod:`motionmae.training.nonfinite` compares with its BUDGET."""
    rollbacks: list[int] = field(default_factory=list)  # ``data_step`` of each rollback
    corrupt: dict[str, str] = field(default_factory=dict)
    """Corrupt samples found by any rank in any attempt: ID -> reason."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch and numpy from (seed, step, rank). A checkpoint then needs no state of random generators.

    Drop path uses torch's generator, timm's mixup uses numpy's.
    """
    bits = keyed_bits("step", seed, step, rank)
    torch.manual_seed(bits % 2**63)
    np.random.seed(bits % 2**32)

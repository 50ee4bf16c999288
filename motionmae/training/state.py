"""Progress of a run as stored in its checkpoints, and the learning rate and seeds of a step."""

from dataclasses import dataclass, field

import numpy as np
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch.optim import Optimizer

from motionmae.config import OptimConfig
from motionmae.data.rng import keyed_bits
from motionmae.distributed.context import DistributedContext, run_on_rank_zero
from motionmae.json_text import JsonModel
from motionmae.runs.checkpoint_manifest import Checkpoint, Count
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.training.validation_record import ValidationRecord


@dataclass
class TrainState:
    """Progress of a run. Every count is over all ranks and does not depend on their number."""

    step: Count = 0  # steps taken, including skipped ones; determines the learning rate
    data_step: Count = 0  # position in the data, in steps; a rollback keeps it, so that training uses new samples
    skipped: Count = 0  # steps skipped for a non-finite loss or gradient
    recently_skipped: list[int] = field(default_factory=list)  # steps that nonfinite.py compares with its BUDGET
    rollbacks: list[int] = field(default_factory=list)  # ``data_step`` of each rollback
    corrupt: dict[str, str] = field(default_factory=dict)  # corrupt samples of all ranks and attempts: ID -> reason
    validation: ValidationRecord = field(default_factory=ValidationRecord)


class _SavedProgress(JsonModel, extra="ignore"):
    validation: ValidationRecord = ValidationRecord()


class _SavedState(JsonModel, extra="ignore"):
    trainer: _SavedProgress


def load_validation_record(
    checkpoint: Checkpoint, store: CheckpointStore, rank: DistributedContext
) -> ValidationRecord:
    """Return the record in a checkpoint, without a best checkpoint that is gone. All ranks must call this."""
    return run_on_rank_zero(rank, lambda: checkpoint.state(_SavedState).trainer.validation.without_lost_best(store))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch and numpy from (seed, step, rank). A checkpoint then needs no state of random generators.

    Drop path uses torch's generator, timm's mixup uses numpy's.
    """
    bits = keyed_bits("step", seed, step, rank)
    torch.manual_seed(bits % 2**63)
    np.random.seed(bits % 2**32)


def build_schedule(optimizer: Optimizer, optim: OptimConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """Build the learning-rate schedule: ``step_update(t)`` sets the rate of step ``t``, counted from 0.

    The rate depends on ``t`` only and needs no state in a checkpoint. The rate rises linearly from 0 to the peak during
    ``optim.warmup_epochs``, then falls by half a cosine to ``optim.min_lr`` after ``optim.epochs``. VideoMAE's
    ``cosine_scheduler`` has the same shape and reaches its peak one step earlier. A warm-up that rounds to all
    steps of a short run ends one step earlier.
    """
    steps = optim.epochs * steps_per_epoch
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), steps - 1)
    for group in optimizer.param_groups:
        group["lr"] = optim.peak_lr
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        lr_min=min(optim.min_lr, optim.peak_lr),
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )

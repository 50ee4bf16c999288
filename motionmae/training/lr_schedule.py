"""Learning-rate schedule: linear warm-up from 0, then half a cosine down to ``optim.min_lr``, set before every step."""

from timm.scheduler.cosine_lr import CosineLRScheduler
from torch.optim import Optimizer

from motionmae.config import OptimConfig


def build_schedule(optimizer: Optimizer, optim: OptimConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """Build timm's cosine schedule over steps: ``step_update(t)`` sets the rate of step ``t``, counted from 0.

    The rate depends on ``t`` only and needs no state in a checkpoint: 0 at step 0, the peak after
    ``optim.warmup_epochs``, ``optim.min_lr`` after ``optim.epochs``. VideoMAE's ``cosine_scheduler`` has the same shape
    and reaches its peak one step earlier.
    """
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = optim.peak_lr
    return CosineLRScheduler(
        optimizer,
        t_initial=optim.epochs * steps_per_epoch - warmup,
        lr_min=min(optim.min_lr, optim.peak_lr),
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )

"""The learning rate: linear from 0, then half a cosine to a small floor, set before every step."""

from timm.scheduler.cosine_lr import CosineLRScheduler
from torch.optim import Optimizer

from motionmae.config import OptimConfig


def build_schedule(optimizer: Optimizer, optim: OptimConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """Make timm's cosine schedule over single steps: ``step_update(t)`` before step ``t``, from 0, sets its rate.

    The rate is a function of ``t`` alone, so there is no state to save: 0 at step 0, the peak after
    ``optim.warmup_epochs``, ``optim.min_lr`` after ``optim.epochs``. (VideoMAE's ``cosine_scheduler`` has the same
    shape and reaches its peak one step earlier.)
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

"""From a config to the task it names."""

from motionmae.config import Config
from motionmae.training.preemption import Outcome, Preemption


def train_task(config: Config, *, preemption: Preemption | None = None) -> Outcome:
    """One incarnation of the run of ``config``, whatever its task; see :mod:`motionmae.training.incarnation`."""
    if config.task == "finetune":
        from motionmae.training.finetune import finetune  # timm's losses and mixup: slow to import

        return finetune(config, preemption=preemption)
    from motionmae.training.pretrain import pretrain

    return pretrain(config, preemption=preemption)

"""From a config to the task it names."""

from collections.abc import Iterable

from motionmae.config import Config
from motionmae.distributed.stop_requests import Preemption
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import Sink
from motionmae.training.pretrain import Pretraining
from motionmae.training.setup import train_run
from motionmae.training.task import Task


def task_of(config: Config) -> Task:
    """What ``config.task`` names."""
    if config.task == "finetune":
        from motionmae.training.finetune import Finetuning  # timm's losses and mixup: slow to import

        return Finetuning(config)
    return Pretraining(config)


def train_task(config: Config, *, preemption: Preemption | None = None, sinks: Iterable[Sink] = ()) -> EndReason:
    """One attempt of the run of ``config``, whatever its task: :func:`motionmae.training.setup.train_run`."""
    return train_run(config, task_of(config), preemption=preemption, sinks=sinks)

"""What ranks do in the tests of whole runs."""

import resource
import time
from typing import Any

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.training import loop
from motionmae.training.distributed import init_distributed
from motionmae.training.exits import exit_of
from motionmae.training.tasks import train_task


def run_all(configs: list[Config]) -> list[str]:
    """Run incarnations one after the other in the same processes; how each ended."""
    init_distributed(configs[0].engine)
    endings = []
    for config in configs:
        try:
            endings.append(train_task(config).name)
        except UserError as error:
            endings.append(str(error))
    return endings


def pretrain_with_small_files(config: Config, limit: int) -> list[str]:
    """Run while no file of the last rank may grow beyond ``limit`` bytes."""
    rank = init_distributed(config.engine)
    if rank.rank == rank.world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return run_all([config])


def pretrain_to_exit(config: Config) -> tuple[str, str]:
    """Run one incarnation, however it ends: the class of its exit and what was said about it."""
    try:
        return train_task(config).name, ""
    except Exception as error:
        return exit_of(error).name, str(error)


def pretrain_and_hang(config: Config, step: int) -> None:
    """Run; the last rank never comes back from ``step``."""
    take_step = loop.take_step

    def take_step_or_hang(run: loop.Run, *arguments: Any) -> loop.Step:
        if run.state.step + 1 == step and run.rank.rank == run.rank.world - 1:
            time.sleep(1e6)
        return take_step(run, *arguments)

    loop.take_step = take_step_or_hang
    train_task(config)

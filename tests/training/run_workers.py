"""What ranks do in test_pretrain.py and test_finetune.py."""

import resource

from motionmae.config import Config
from motionmae.errors import UserError
from motionmae.training.distributed import init_distributed
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


pretrain_all = run_all


def pretrain_with_small_files(config: Config, limit: int) -> list[str]:
    """Run while no file of the last rank may grow beyond ``limit`` bytes."""
    rank = init_distributed(config.engine)
    if rank.rank == rank.world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return run_all([config])

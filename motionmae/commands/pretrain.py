"""`motionmae pretrain`: train in this process, which may be one of the ranks that torchrun or srun started."""

import argparse
import os

from motionmae.commands.app import Command, add_config_arguments
from motionmae.errors import UserError

_DESCRIPTION = """\
Pre-train a model. The run folder is OUTPUT_DIR/NAME (config keys `output_dir` and `name`). The same command resumes the
run from its newest valid checkpoint, also with another number of processes or another ZeRO stage."""

_EPILOG = """\
examples:
  motionmae pretrain --config tiny_toy data.shards=data/toy/train
  motionmae pretrain --config tiny_toy optim.epochs=20 name=toy_20 engine.zero_stage=2
  torchrun --nproc-per-node 2 -m motionmae pretrain --config tiny_toy data.shards=data/toy/train
  srun --ntasks-per-node 8 --gpus-per-node 8 python -m motionmae pretrain --config vitl_k400 data.shards=/data/k400

exit status:
  0    the run is complete
  2    an error that a person must correct, described in one sentence
  75   SIGUSR2: the run was saved; start the same command again
  76   other ranks or the network failed: the same command resumes from the last checkpoint
  79   the watchdog ended a hanging step and wrote all stacks to RUN/logs: start the same command again
  80   a newer attempt of the run owns the run folder; this attempt wrote nothing more
  81   the file RUN/stop ended the run after a save (the file RUN/save only saves)
  143  SIGTERM, Ctrl-C or a closed terminal ended the run after a save; a second Ctrl-C exits at once (130)
  1    a bug, with its traceback; the same command resumes from the last checkpoint"""


def train(arguments: argparse.Namespace, task: str) -> int:
    """Run the task of a config, which must be ``task``."""
    from motionmae.config import load_config, refuse_unused

    try:
        config = load_config(arguments.config, arguments.overrides)
        if config.task != task:
            raise UserError(f"the config {arguments.config} is for {config.task}: use `motionmae {config.task}`")
        refuse_unused(config, arguments.overrides)
    except UserError as error:  # all ranks have the same arguments
        error.already_reported = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"
        raise
    from monitoring.exporter_process import monitoring_sinks

    with monitoring_sinks(config) as sinks:
        from motionmae.training.setup import run_training

        return run_training(config, sinks=sinks).exit_code


COMMAND = Command(
    add_config_arguments, lambda arguments: train(arguments, "pretrain"), description=_DESCRIPTION, epilog=_EPILOG
)

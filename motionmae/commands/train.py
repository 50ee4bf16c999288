"""`motionmae pretrain` and `motionmae finetune`: train in this process, alone or as a rank of torchrun or srun."""

import argparse
import os
from functools import partial

from motionmae.commands.app import Command, add_config_arguments
from motionmae.errors import UserError

_PRETRAIN = """\
Pre-train a model. The run folder is OUTPUT_DIR/NAME (config keys `output_dir` and `name`). The same command resumes the
run from its newest valid checkpoint, also with a different number of processes or a different ZeRO stage."""

_PRETRAIN_EXAMPLES = """\
examples:
  motionmae pretrain --config tiny_toy data.shards=data/toy/train
  motionmae pretrain --config tiny_toy optim.epochs=20 name=toy_20 engine.zero_stage=2
  torchrun --nproc-per-node 2 -m motionmae pretrain --config tiny_toy data.shards=data/toy/train
  srun --kill-on-bad-exit=1 --ntasks-per-node 8 --gpus-per-node 8 python -m motionmae pretrain --config vitl_k400

exit status:
  0    the run is complete
  2    an error that a person must correct, described in one sentence
  75   SIGUSR2: the run was saved; start the same command again
  76   other ranks or the network failed: the same command resumes from the last checkpoint
  79   the watchdog ended a hanging step and wrote all stacks to RUN/logs: start the same command again
  80   a newer attempt of the run owns the run folder; this attempt wrote nothing more
  81   the file RUN/stop ended the run after a save (the file RUN/save requests only a save)
  143  SIGTERM, Ctrl-C or a closed terminal ended the run after a save; a second Ctrl-C exits at once (130), as does
       the first before training has begun
  1    a bug, with its traceback; the same command resumes from the last checkpoint"""

_FINETUNE = """\
Fine-tune a pre-trained encoder on labelled shards, or train a probe on it. The run folder is OUTPUT_DIR/NAME (config
keys `output_dir` and `name`). The same command resumes the run. Exit statuses are those of `motionmae pretrain`."""

_FINETUNE_EXAMPLES = """\
examples:
  motionmae finetune --config finetune_tiny_toy data.shards=data/toy/train finetune.init=runs/tiny_toy
  motionmae finetune --config finetune_tiny_toy finetune.mode=linear name=toy_probe
  torchrun --nproc-per-node 8 -m motionmae finetune --config finetune_vitb_k400 finetune.init=vitb_k400.safetensors
  motionmae submit --nodes 4 --config finetune_vitb_k400"""


def train(arguments: argparse.Namespace, task: str) -> int:
    """Train the run of a config, and return the exit status. Raises UserError if the config is for a different task."""
    from motionmae.config import load_config, refuse_unused

    try:
        config = load_config(arguments.config, arguments.overrides)
        if config.task != task:
            raise UserError(f"the config {arguments.config} is for {config.task}: use `motionmae {config.task}`")
        refuse_unused(config, arguments.overrides)
    except UserError as error:  # all ranks raise it, because they have the same arguments
        error.already_reported = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"
        raise
    from monitoring.exporter_process import monitoring_sinks

    with monitoring_sinks(config) as sinks:
        from motionmae.training.setup import run_training

        return run_training(config, sinks=sinks).exit_code


PRETRAIN = Command(add_config_arguments, partial(train, task="pretrain"), _PRETRAIN, _PRETRAIN_EXAMPLES)
FINETUNE = Command(add_config_arguments, partial(train, task="finetune"), _FINETUNE, _FINETUNE_EXAMPLES)

"""``python -m motionmae pretrain``: train in this process, or as one of the ranks that torchrun or srun started."""

import argparse
import os

from motionmae.errors import UserError

_DESCRIPTION = """\
Pre-train a model. The run's folder is RUNS/NAME (config keys `runs` and `name`); the same command again resumes it
from its newest whole checkpoint, also on another number of processes or at another ZeRO stage."""

_EPILOG = """\
examples:
  python -m motionmae pretrain --config tiny_toy data.shards=data/toy/train
  python -m motionmae pretrain --config tiny_toy data.shards=data/toy/train optim.epochs=20 name=toy_20 engine.zero_stage=2
  torchrun --nproc-per-node 2 -m motionmae pretrain --config tiny_toy data.shards=data/toy/train
  srun --ntasks-per-node 8 --gpus-per-node 8 python -m motionmae pretrain --config vitl_k400 data.shards=/data/k400

exit status:
  0    the run is complete
  2    something a person must mend, said in one sentence
  75   stopped by SIGUSR2 after saving: start the same command again
  76   lost the other ranks or the network to them: the same command resumes from the last checkpoint
  79   hung, ended by the watchdog after writing all stacks to RUN/logs: start the same command again
  80   a newer start of the same run has taken over its folder; this one wrote nothing more
  81   stopped by the file RUN/stop after saving; the file RUN/save makes a run save at once
  143  stopped by SIGTERM, Ctrl-C or the end of the terminal after saving; a second Ctrl-C leaves at once (130)
  1    a bug, with a traceback; the same command resumes from the last checkpoint"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    add_training_parser(subparsers, "pretrain", "pre-train a model, or resume its run", _DESCRIPTION, _EPILOG)


def add_training_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    task: str,
    summary: str,
    description: str,
    examples: str,
) -> None:
    """Register the command that trains by configs of ``task``."""
    parser = subparsers.add_parser(
        task,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="name of a file in configs/, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.set_defaults(run=lambda arguments: train(arguments, task))


def train(arguments: argparse.Namespace, task: str) -> int:
    """Run the task of a config, which must be ``task``; returns the exit status."""
    from motionmae.config import load_config, refuse_unused

    try:
        config = load_config(arguments.config, arguments.overrides)
        if config.task != task:
            raise UserError(
                f"the config {arguments.config} is one to {config.task}: use `python -m motionmae {config.task}`"
            )
        refuse_unused(config, arguments.overrides)
    except UserError as error:  # every rank was given the same words
        error.already_reported = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"
        raise
    from monitoring.exporter_process import monitoring_sinks

    with monitoring_sinks(config) as sinks:
        from motionmae.training.setup import run_training

        return run_training(config, sinks=sinks).exit_code

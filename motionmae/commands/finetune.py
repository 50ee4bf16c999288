"""``python -m motionmae finetune``: train a classifier on a pre-trained encoder, here or as one of many ranks."""

import argparse

from motionmae.commands.pretrain import add_training_parser

_DESCRIPTION = """\
Fine-tune a pre-trained encoder on labelled shards, or train a probe on it. The run's folder is RUNS/NAME; the same
command again resumes it. Exit statuses are those of pretrain."""

_EPILOG = """\
examples:
  python -m motionmae finetune --config finetune_tiny_toy data.shards=data/toy/train finetune.init=runs/tiny_toy
  python -m motionmae finetune --config finetune_tiny_toy finetune.mode=linear name=toy_probe
  torchrun --nproc-per-node 8 -m motionmae finetune --config finetune_vitb_k400 finetune.init=vitb_k400.safetensors
  python slurm/submit.py --nodes 4 --config finetune_vitb_k400"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    summary = "fine-tune a pre-trained encoder, or resume its run"
    add_training_parser(subparsers, "finetune", summary, _DESCRIPTION, _EPILOG)

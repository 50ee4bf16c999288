"""`motionmae finetune`: train a classifier on a pre-trained encoder, alone or as one of many ranks."""

from motionmae.commands.app import Command, add_config_arguments
from motionmae.commands.pretrain import train

_DESCRIPTION = """\
Fine-tune a pre-trained encoder on labelled shards, or train a probe on it. The run folder is OUTPUT_DIR/NAME (config
keys `output_dir` and `name`). The same command resumes the run. Exit statuses are those of `motionmae pretrain`."""

_EPILOG = """\
examples:
  motionmae finetune --config finetune_tiny_toy data.shards=data/toy/train finetune.init=runs/tiny_toy
  motionmae finetune --config finetune_tiny_toy finetune.mode=linear name=toy_probe
  torchrun --nproc-per-node 8 -m motionmae finetune --config finetune_vitb_k400 finetune.init=vitb_k400.safetensors
  motionmae submit --nodes 4 --config finetune_vitb_k400"""


COMMAND = Command(
    add_config_arguments, lambda arguments: train(arguments, "finetune"), description=_DESCRIPTION, epilog=_EPILOG
)

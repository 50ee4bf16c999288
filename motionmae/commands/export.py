"""`motionmae export`: write a run's weights as safetensors or for Hugging Face transformers."""

import argparse
from pathlib import Path

from motionmae.commands.app import Command, add_run_arguments
from motionmae.text import say

_DESCRIPTION = "Write a run's weights with a model card, as safetensors or for Hugging Face transformers."
_EPILOG = """\
examples:
  motionmae export runs/vitb_k400 --format safetensors --out vitb_k400
  motionmae export runs/finetune_vitb_k400 --format hf --out videomae-k400

To read the weights: finetune.init=FOLDER takes both formats, and transformers' from_pretrained("FOLDER") takes hf. For
safetensors of a fine-tuned model, `import motionmae.models.timm_models` and call timm's
create_model("motionmae_vit_base_patch16_224", checkpoint_path="FOLDER/model.safetensors", num_classes=N)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--format", choices=("safetensors", "hf"), default="safetensors", help="default: safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(arguments: argparse.Namespace) -> int:
    from motionmae.evaluation.export import export

    for path in export(arguments.folder, arguments.step, arguments.format, arguments.out):
        say(f"wrote {path}")
    return 0


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

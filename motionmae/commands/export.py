"""`motionmae export`: write a run's weights as safetensors or for Hugging Face transformers."""

import argparse
from pathlib import Path

from motionmae.commands.app import Command

_EPILOG = """\
examples:
  motionmae export runs/vitb_k400 --format safetensors --out vitb_k400
  motionmae export runs/finetune_vitb_k400 --format hf --out videomae-k400

reading the weights: finetune.init=FOLDER takes both formats; transformers' from_pretrained("FOLDER") takes hf; timm's
create_model("motionmae_vit_base_patch16_224", checkpoint_path="FOLDER/model.safetensors", num_classes=N) takes
safetensors of a fine-tuned model, after `import motionmae.models.timm_models`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder, of pre-training or fine-tuning")
    parser.add_argument("--format", choices=("safetensors", "hf"), default="safetensors", help="default: safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")


def run(arguments: argparse.Namespace) -> int:
    """Export the weights, and print the names of the files."""
    from motionmae.evaluation.export import export

    for path in export(arguments.folder, arguments.step, arguments.format, arguments.out):
        print(f"wrote {path}")
    return 0


COMMAND = Command(
    add_arguments,
    run,
    description="Write a run's weights with a model card, as safetensors or for Hugging Face transformers.",
    epilog=_EPILOG,
)

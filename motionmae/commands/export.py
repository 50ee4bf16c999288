"""``python -m motionmae export``: a run's weights as safetensors or for Hugging Face transformers."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  python -m motionmae export runs/vitb_k400 --format safetensors --out vitb_k400
  python -m motionmae export runs/finetune_vitb_k400 --format hf --out videomae-k400

what is read back: finetune.init=FOLDER takes both; transformers' from_pretrained("FOLDER") takes hf;
timm's create_model("motionmae_vit_base_patch16_224", checkpoint_path="FOLDER/model.safetensors", num_classes=N) takes
safetensors of a fine-tuned model, after `import motionmae.models.timm_models`."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's weights for others",
        description="Write a run's weights with a model card, as safetensors or for Hugging Face transformers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder, of pre-training or fine-tuning")
    parser.add_argument("--format", choices=("safetensors", "hf"), default="safetensors", help="default: safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, say what was written, and return the exit status."""
    from motionmae.evaluation.export import export

    for path in export(arguments.folder, arguments.step, arguments.format, arguments.out):
        print(f"wrote {path}")
    return 0

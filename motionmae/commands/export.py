"""`motionmae export`: write weights as safetensors or for Hugging Face transformers."""

import argparse
import re
from pathlib import Path

from motionmae.commands.app import Command, add_classes_argument, add_weights_arguments
from motionmae.text import say

_DESCRIPTION = """\
Write weights as safetensors, or for Hugging Face transformers, with a model card: licence, accuracy, classes, and code
that runs."""
_EPILOG = """\
examples:
  motionmae export runs/vitb_k400 --format safetensors --out vitb_k400
  motionmae export runs/finetune_vitb_k400 --format hf --out videomae-k400

The card has the figures of `motionmae test` for the same step: test before you export. All commands,
`motionmae.load("FOLDER")` and finetune.init=FOLDER take both formats, and transformers' from_pretrained takes hf."""


def _license(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SPDX identifier in lower case: write such as cc-by-nc-4.0")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    add_classes_argument(parser)
    parser.add_argument("--format", choices=("safetensors", "hf"), default="safetensors", help="default: safetensors")
    given = "SPDX identifier for the card, such as cc-by-nc-4.0 (default: apache-2.0 for runs, other for other weights)"
    parser.add_argument("--license", type=_license, help=given)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(arguments: argparse.Namespace) -> int:
    from motionmae.evaluation.export import export
    from motionmae.evaluation.weights_source import find_weights

    source = find_weights(arguments.weights, arguments.step, arguments.settings, arguments.classes)
    for path in export(source, None, arguments.format, arguments.out, arguments.license):
        say(f"wrote {path}")
    return 0


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

"""Scores of the DAVIS-2017 baselines that a trained encoder must beat, as a table for docs/train/davis.md.

    python -m benchmarks.davis_baselines --davis DAVIS --protocol dino --markdown davis_baselines.md

The rows are the first mask repeated, the raw pixels of each 16 x 16 cell, and a ViT with random weights and each of
--adapters. The folder --out keeps the masks, so that the same command continues an interrupted run.
"""

import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.script import build_parser, run_script
from motionmae.checkpointing.load_weights import fingerprint
from motionmae.config import load_config
from motionmae.evaluation.cache_key import CacheKey
from motionmae.evaluation.davis.dataset import read_sequences, score_folder
from motionmae.evaluation.davis.frame_features import encoder_features, pixel_features
from motionmae.evaluation.davis.metrics import global_means
from motionmae.evaluation.davis.run import FeatureExtractor, segment
from motionmae.files import output_file, write_atomically
from motionmae.models.motionmae import build_motionmae

CELL = 16
CPU = torch.device("cpu")


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--davis", type=Path, required=True, help="DAVIS folder in the official layout")
    parser.add_argument("--protocol", choices=("videowalk", "dino"), default="dino")
    parser.add_argument("--adapters", nargs="*", default=["duplicate"], help="adapters of the random encoder")
    parser.add_argument("--size", default="vit_ti", help="size of the random encoder (default: vit_ti)")
    parser.add_argument("--out", type=Path, default=Path("davis_baselines"), help="folder for the masks")
    parser.add_argument("--markdown", type=output_file, help="Markdown file for the table")
    arguments = parser.parse_args()

    encoder = build_motionmae(load_config("vitb_k400", [f"model.size={arguments.size}"])).encoder.eval()
    extractors = {
        "first mask repeated": FeatureExtractor(1, None),
        "raw pixels": FeatureExtractor(CELL, lambda frames: pixel_features(frames, CELL)),
    }
    for adapter in arguments.adapters:
        extractors[f"random {arguments.size}, {adapter}"] = FeatureExtractor(
            CELL, partial(encoder_features, encoder=encoder, adapter=adapter, device=CPU)
        )
    sequences = read_sequences(arguments.davis)
    lines = [
        f"{len(sequences)} sequences ({', '.join(s.name for s in sequences)}), protocol `{arguments.protocol}`.",
        "",
        "| features | J&F | J | F | seconds a frame |",
        "|---|---|---|---|---|",
    ]
    for name, extractor in extractors.items():
        folder = arguments.out / arguments.protocol / name.replace(", ", "_").replace(" ", "_")
        fresh, start = not folder.exists(), time.perf_counter()
        key = CacheKey(
            fingerprint(encoder) if name.startswith("random") else "",
            str(arguments.davis.resolve()),
            {"features": name, "protocol": arguments.protocol},
        )
        segment(sequences, extractor, arguments.protocol, folder, key)
        seconds = (time.perf_counter() - start) / sum(len(sequence.frames) for sequence in sequences)
        means = global_means(score_folder(sequences, folder))
        figures = " | ".join(f"{100 * means[key]:.1f}" for key in ("J&F-Mean", "J-Mean", "F-Mean"))
        lines.append(f"| {name} | {figures} | {f'{seconds:.2f}' if fresh else ''} |")
        print(lines[-1], flush=True)
    if arguments.markdown:
        write_atomically(arguments.markdown, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    run_script(main)

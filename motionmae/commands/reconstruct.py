"""`motionmae reconstruct`: draw what a model's heads reconstruct, on clips of shards or of video files."""

import argparse
from pathlib import Path

from motionmae.commands.app import Command, add_weights_arguments
from motionmae.errors import UserError
from motionmae.outputs import output_argument, refuse_foreign, signed
from motionmae.text import say

_DESCRIPTION = "Draw original, masked input, reconstruction, motion and reconstructed motion of some clips."
_EPILOG = """\
examples:
  motionmae reconstruct runs/demo
  motionmae reconstruct runs/demo --samples 0 7 --ratio 0.9 0.95 --out figure3.png
  motionmae reconstruct runs/demo --video cat.mp4 dog.webm --ratio 0.9 0.95 --out figure3.gif
  motionmae reconstruct videomae-base --video cat.mp4 --out cat.png
  motionmae reconstruct runs/demo --shards data/ut_interaction/val --step 500
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser, "a pre-training")
    out = output_argument(signed, ".png", ".gif", ".mp4")
    parser.add_argument(
        "--out", type=out, help="PNG, GIF or mp4 (default: reconstruction.png in the run, or in results/NAME)"
    )
    parser.add_argument("--video", type=Path, nargs="+", help="video files, whose central clips are used")
    parser.add_argument("--shards", help="folder or URL of shards (default: the run's)")
    parser.add_argument("--samples", type=int, nargs="+", default=[0, 1], help="sample numbers (default: 0 1)")
    parser.add_argument("--ratio", type=float, nargs="+", help="masking ratios (default: the run's)")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip in a PNG (default: 8)")
    shown = "show reconstructed cubes only; visible cubes are grey, or without motion"
    parser.add_argument("--masked-only", action="store_true", help=shown)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from motionmae.data.open_shards import open_samples
    from motionmae.data.video.read_video import UnreadableVideo, read_central_clip
    from motionmae.evaluation.load_model import load_pretrained
    from motionmae.evaluation.reconstructions import make_block, read_clips, write_png, write_video
    from motionmae.evaluation.weights_source import find_weights

    source = find_weights(arguments.weights, arguments.step, arguments.settings)
    out = arguments.out or source.results / "reconstruction.png"
    refuse_foreign(out, signed)
    if arguments.frames < 1:
        raise UserError(f"--frames must be at least 1, not {arguments.frames}")
    for ratio in arguments.ratio or ():
        if not 0 < ratio < 1:
            raise UserError(f"--ratio must be between 0 and 1, not {ratio}")
    loaded = load_pretrained(source)
    config = loaded.config
    if arguments.video:
        if config.target.needs_flow:
            raise UserError(f"{arguments.weights} was trained on optical flow, which video files lack: use --shards")
        names, flow = [path.name for path in arguments.video], None
        try:
            clips = torch.stack([read_central_clip(path, config.clip) for path in arguments.video])
        except UnreadableVideo as error:
            raise UserError(f"{error}: choose another file") from error
    else:
        names = [f"sample {sample}" for sample in arguments.samples]
        shards = arguments.shards or (config.data.shards if source.run else "")
        if not shards:
            raise UserError(
                f"{arguments.weights} is not a run with shards of its own: add --video FILE or --shards FOLDER"
            )
        reader = open_samples(config.data.model_copy(update={"shards": shards, "beton": ""}))
        clips, flow = read_clips(reader, arguments.samples, config)
    seeds = torch.arange(len(names)) if arguments.video else torch.tensor(arguments.samples)
    columns = arguments.frames if out.suffix == ".png" else config.clip.frames
    blocks = []
    for ratio in arguments.ratio or [config.mask.ratio]:
        reconstructions = loaded.model.reconstruct(clips, seeds, ratio, flow)
        for clip, name in enumerate(names):
            title = f"{name}, {ratio:.0%} masked ({config.mask.kind})"
            block = make_block(title, reconstructions, clip, columns, masked_only=arguments.masked_only)
            blocks.append((clip, block))
    blocks.sort(key=lambda block: block[0])  # all ratios of a clip below each other
    ordered = [block for _, block in blocks]
    write = write_png if out.suffix == ".png" else write_video
    write(ordered, out, loaded.title)
    say(f"wrote {out}")
    return 0


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

"""``python -m motionmae reconstruct``: Figure 3 for a run's own model, on clips of shards or of any video file."""

import argparse
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import output_ending

_EXAMPLES = """examples:
  python -m motionmae reconstruct runs/demo
  python -m motionmae reconstruct runs/demo --samples 0 7 --ratio 0.9 0.95 --out figure3.png
  python -m motionmae reconstruct runs/demo --video cat.mp4 dog.webm --ratio 0.9 0.95 --out figure3.gif
  python -m motionmae reconstruct runs/demo --shards data/ut_interaction/val --step 500
"""

_ENDINGS = (".png", ".gif", ".mp4")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "reconstruct",
        help="draw what a run's heads rebuild",
        description="Draw original, masked input, rebuilt frames, true motion and rebuilt motion of some clips.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--out", type=output_ending(*_ENDINGS), help="PNG, GIF or mp4 (default: RUN/reconstruction.png)"
    )
    parser.add_argument("--video", type=Path, nargs="+", help="video files to take the middle clips of")
    parser.add_argument("--shards", help="folder or URL of shards to take clips from (default: the run's)")
    parser.add_argument("--samples", type=int, nargs="+", default=[0, 1], help="numbers of the samples (default: 0 1)")
    parser.add_argument("--ratio", type=float, nargs="+", help="masking ratios (default: the run's)")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip that a PNG shows (default: 8)")
    parser.add_argument(
        "--masked-only",
        action="store_true",
        help="show what the heads drew alone: visible cubes, which hold the truth, are grey, or without motion",
    )
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the picture and return the exit status."""
    import torch

    from motionmae.data.open_shards import open_reader
    from motionmae.data.video import UnreadableVideo, read_central_clip
    from motionmae.evaluation.load_run import load_pretrained
    from motionmae.evaluation.reconstructions import make_block, read_clips, write_png, write_video

    out = arguments.out or arguments.folder / "reconstruction.png"
    if arguments.frames < 1:
        raise UserError(f"--frames {arguments.frames} leaves nothing to see: give at least 1")
    for ratio in arguments.ratio or ():
        if not 0 < ratio < 1:
            raise UserError(f"--ratio {ratio} is no share of the cubes: give one between 0 and 1, such as 0.9")
    loaded = load_pretrained(arguments.folder, arguments.step)
    config = loaded.config
    if arguments.video:
        if config.target.has_motion and config.target.motion_source == "flow":
            raise UserError(f"{arguments.folder} was trained on optical flow, which --video files lack: use --shards")
        names, flow = [path.name for path in arguments.video], None
        try:
            clips = torch.stack([read_central_clip(path, config.clip) for path in arguments.video])
        except UnreadableVideo as error:
            raise UserError(f"{error}: choose another file") from error
    else:
        names = [f"sample {sample}" for sample in arguments.samples]
        reader = open_reader(arguments.shards or config.data.shards, data=config.data)
        clips, flow = read_clips(reader, arguments.samples, config)
    seeds = torch.arange(len(names)) if arguments.video else torch.tensor(arguments.samples)
    columns = arguments.frames if out.suffix == ".png" else config.clip.frames
    blocks = []
    for ratio in arguments.ratio or [config.mask.ratio]:
        found = loaded.model.reconstruct(clips, seeds, ratio, flow)
        for place, name in enumerate(names):
            title = f"{name}, {ratio:.0%} masked ({config.mask.kind})"
            block = make_block(title, found, place, columns, masked_only=arguments.masked_only)
            blocks.append((place, block))
    blocks.sort(key=lambda block: block[0])  # one clip's ratios below each other
    ordered = [block for _, block in blocks]
    write = write_png if out.suffix == ".png" else write_video
    write(ordered, out, f"{config.name}, step {loaded.step}")
    print(f"wrote {out}")
    return 0

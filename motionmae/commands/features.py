"""`motionmae features`: write the clip features of a folder of videos as npz or parquet."""

import argparse
from pathlib import Path

from motionmae.commands.app import Command
from motionmae.files import output_ending

_EPILOG = """\
examples:
  motionmae features runs/demo --videos data/demo/videos --out features.npz
  motionmae features runs/demo --videos data/demo/videos --out features.parquet
  torchrun --nproc-per-node 2 -m motionmae features runs/demo --videos data/demo/videos --out features.npz

An npz file holds `names` (paths below the folder), `features` (float32, one row per name), `unreadable` and `reasons`.
A parquet file (pip install 'motionmae[parquet]') holds one row per video: `name`, `feature` and, if that is null,
`reason`. The same command continues an interrupted run from OUT.parts and retries unreadable videos. Use a different
--out for each run and folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder, of pre-training or fine-tuning")
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, searched recursively")
    table = output_ending(".npz", ".parquet")
    parser.add_argument("--out", type=table, required=True, help="file to write, .npz or .parquet")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")


def run(arguments: argparse.Namespace) -> int:
    """Compute and write the features."""
    from motionmae.config import EngineConfig
    from motionmae.distributed.context import rank_zero_first, run_on_rank_zero
    from motionmae.distributed.process_group import distributed
    from motionmae.evaluation.features import WRITERS, features_of_files, find_videos
    from motionmae.evaluation.load_run import choose_step, load_embedding
    from motionmae.files import write_atomically

    out = arguments.out
    with distributed(EngineConfig()) as rank:
        chosen = choose_step(arguments.folder, arguments.step, rank)
        model, config, step = rank_zero_first(rank, lambda: load_embedding(arguments.folder, chosen))
        folder, parts = arguments.videos, out.with_name(f"{out.name}.parts")
        videos, others = run_on_rank_zero(rank, lambda: find_videos(folder))
        results = features_of_files(model, config, folder, videos, parts, rank)
        if rank.is_rank_zero:
            write_atomically(out, WRITERS[out.suffix](results))
            for reason in results.unreadable.values():
                print(f"not read: {reason}")
            count, missing = len(results.values), len(results.unreadable)
            print(f"skipped {others} files without the suffix of a video")
            print(f"wrote {out}: {count} videos by step {step}, {missing} not read")
    return 0


COMMAND = Command(
    add_arguments,
    run,
    description="Write the mean token of each video's central clip, computed by a run's frozen encoder.",
    epilog=_EPILOG,
)

"""``python -m motionmae features``: clip features of a folder of videos as npz or parquet."""

import argparse
from pathlib import Path

from motionmae.files import output_ending

_EPILOG = """\
examples:
  python -m motionmae features runs/demo --videos data/demo/videos --out features.npz
  python -m motionmae features runs/demo --videos data/demo/videos --out features.parquet
  torchrun --nproc-per-node 2 -m motionmae features runs/demo --videos data/demo/videos --out features.npz

An npz holds `names` (paths below the folder), `features` (float32, one row a name), `unreadable` and `reasons`; a
parquet file (pip install 'motionmae[parquet]') a row a video of `name`, `feature` and, where that is null, `reason`.
The same command again goes on where it was interrupted (in OUT.parts), and tries again what could not be read; another
run or folder takes another --out."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "features",
        help="clip features of a folder of videos",
        description="Write the mean token of each video's middle clip, by a run's frozen encoder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder, of pre-training or fine-tuning")
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, searched with all below it")
    table = output_ending(".npz", ".parquet")
    parser.add_argument("--out", type=table, required=True, help="file to write, .npz or .parquet")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compute, write, and return the exit status."""
    from motionmae.config import EngineConfig
    from motionmae.distributed.context import rank_zero_first, run_on_rank_zero
    from motionmae.distributed.process_group import distributed
    from motionmae.evaluation.feature_files import WRITERS
    from motionmae.evaluation.features import features_of_files, find_videos
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

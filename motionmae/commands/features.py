"""``python -m motionmae features``: clip features of a folder of videos as npz."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  python -m motionmae features runs/demo --videos data/demo/videos --out features.npz
  torchrun --nproc-per-node 2 -m motionmae features runs/demo --videos data/demo/videos --out features.npz

The npz holds `names` (paths below the folder), `features` (float32, one row a name), `unreadable` and `reasons`.
The same command again goes on where it was interrupted (in OUT.parts)."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "features",
        help="clip features of a folder of videos",
        description="Write the mean token of each video's middle clip, by a run's frozen encoder, as npz.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder, of pre-training or fine-tuning")
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, searched with all below it")
    parser.add_argument("--out", type=Path, required=True, help="npz to write")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compute, write, and return the exit status."""
    import io

    import numpy as np

    from motionmae.config import EngineConfig
    from motionmae.data.files import write_atomically
    from motionmae.evaluation.features import features_of_files
    from motionmae.evaluation.pretrained import load_embedding
    from motionmae.training.distributed import distributed, first_then_others

    with distributed(EngineConfig()) as rank:
        model, config, step = first_then_others(rank, lambda: load_embedding(arguments.folder, arguments.step))
        work = arguments.out.with_name(f"{arguments.out.name}.parts")
        results = features_of_files(model, config, arguments.videos, work, rank)
        if rank.is_first:
            content = io.BytesIO()
            np.savez(
                content,
                names=np.array(list(results.values)),
                features=np.stack(list(results.values.values())) if results.values else np.empty((0, 0), np.float32),
                unreadable=np.array(list(results.unreadable)),
                reasons=np.array(list(results.unreadable.values())),
            )
            write_atomically(arguments.out, content.getvalue())
            for reason in results.unreadable.values():
                print(f"not read: {reason}")
            count, missing = len(results.values), len(results.unreadable)
            print(f"wrote {arguments.out}: {count} videos by step {step}, {missing} not read")
    return 0

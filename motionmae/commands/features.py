"""`motionmae features`: write the clip features of a folder of videos as npz or parquet."""

import argparse
from pathlib import Path

from motionmae.commands.app import Command, add_weights_arguments
from motionmae.outputs import archive_of, containing, output_argument
from motionmae.text import say

_DESCRIPTION = "Write the mean token of each video's central clip, computed by a frozen encoder."
_EPILOG = """\
examples:
  motionmae features runs/demo --videos data/demo/videos --out features.npz
  motionmae features runs/demo --videos data/demo/videos --out features.parquet
  motionmae features exported --videos data/demo/videos --out features.npz
  torchrun --nproc-per-node 2 -m motionmae features runs/demo --videos data/demo/videos --out features.npz

An npz file holds `names` (paths in the folder), `features` (float32, one row per name), `unreadable` and `reasons`.
A parquet file (pip install 'motionmae[parquet]') holds one row per video: `name`, `feature`, and `reason` if the
feature is null. The same command continues an interrupted run from OUT.parts and retries unreadable videos. Use a
different --out for each model and folder."""


_ARCHIVE = archive_of("names", "features", "unreadable", "reasons")
_TABLE = containing("motionmae features")


def _recognise(path: Path) -> bool:
    return _ARCHIVE(path) if path.suffix == ".npz" else _TABLE(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, searched recursively")
    out = output_argument(_recognise, ".npz", ".parquet")
    parser.add_argument("--out", type=out, required=True, help="file to write, .npz or .parquet")


def run(arguments: argparse.Namespace) -> int:
    from motionmae.config import EngineConfig
    from motionmae.data.video.open_video import note_on_outside
    from motionmae.distributed.context import rank_zero_first, run_on_rank_zero
    from motionmae.distributed.process_group import distributed
    from motionmae.evaluation.features import WRITERS, features_of_files, find_videos
    from motionmae.evaluation.load_model import choose_weights, load_embedding
    from motionmae.files import write_atomically

    out = arguments.out
    with distributed(EngineConfig()) as rank:
        source = choose_weights(rank, arguments.weights, arguments.step, arguments.settings)
        model, loaded = rank_zero_first(rank, lambda: load_embedding(source))
        folder, parts = arguments.videos, out.with_name(f"{out.name}.parts")
        videos, others = run_on_rank_zero(rank, lambda: find_videos(folder))
        results = features_of_files(model, loaded.config, folder, videos, parts, rank)
        if rank.is_rank_zero:
            write_atomically(out, WRITERS[out.suffix](results))
            for reason in results.unreadable.values():
                say(f"not read: {reason}")
            if note := note_on_outside(folder, [folder / name for name in videos]):
                say(f"note: {note}")
            say(f"skipped {others} files without a video extension")
            say(f"wrote {out}: {len(results.values)} videos by {loaded.title}, {len(results.unreadable)} not read")
    return 0


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

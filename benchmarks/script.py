"""Parts that the benchmark scripts share."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NoReturn

from motionmae import files
from motionmae.commands.app import main as motionmae
from motionmae.commands.app import run


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows ``description`` with its line breaks."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a benchmark that trains a model: its config, changes to the config, and a file of results."""
    parser.add_argument("--config", default="vitb_k400", help="config of model and ZeRO stage (default: vitb_k400)")
    parser.add_argument("--json", type=files.output_file, help="file for the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")


def add_videos_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", type=Path, help="folder of videos (default: real footage of installed packages)")


def find_videos(parser: argparse.ArgumentParser, folder: Path | None) -> list[Path]:
    """Return the videos in ``folder``, the value of --videos. If there are none, end the program with a message."""
    from data_tools.make_toy_dataset.cli import find_real_videos  # slow to import, as is the next
    from motionmae.data.video.read_video import VIDEO_SUFFIXES

    found = sorted(folder.rglob("*")) if folder else find_real_videos()
    videos = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        parser.error("no videos: give --videos FOLDER, or install a few with pip install 'motionmae[demo]'")
    return videos


def make_shards(videos: list[Path], folder: Path, samples: int, *options: str) -> Path:
    """Write shards of ``samples`` videos with make_shards, repeat videos as needed, and return the folder."""
    links = folder / "videos"
    links.mkdir(parents=True)
    for number, video in zip(range(samples), cycle(videos), strict=False):
        (links / f"{number:04d}{video.suffix}").symlink_to(video.resolve())
    out = folder / "shards"
    status = motionmae(
        ["shards", "make", "folder", "--videos", str(links), "--out", str(out), "--samples-per-shard", "4", *options]
    )
    assert status == 0, f"make_shards ended with status {status}"
    return out


def write_json(path: Path | None, figures: object) -> None:
    """Write ``figures`` to ``path``, the value of --json. Do nothing without --json."""
    if path:
        files.write_json(path, figures)


def run_ranks(ranks: int, arguments: list[str]) -> Any:
    """Start the current script on ``ranks`` processes with one thread each, and return the results of rank 0.

    The script finds RANK in its environment and writes its results to the last ``--json``. Freed memory returns to the
    system at once, because otherwise the size of a process would not show how much it holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        eager = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **eager}
        module = sys.modules["__main__"].__spec__
        assert module is not None, "start the benchmark by `python -m benchmarks.NAME`"
        command = [*launcher, "-m", module.name, *arguments, f"--json={out}"]
        if subprocess.run(command, env=environment, check=False).returncode:
            sys.exit(f"the {ranks} processes of the benchmark failed: see the messages above")
        return json.loads(out.read_text())


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and end the process, with the messages and exit statuses of `motionmae`."""
    sys.exit(run(main))

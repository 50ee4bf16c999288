"""JHMDB's person masks as a benchmark of label propagation, with intervals."""

import argparse
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from motionmae.commands.app import run
from motionmae.data.video.open_video import open_video
from motionmae.errors import UserError
from motionmae.evaluation.davis.dataset import RESOLUTION, write_mask
from motionmae.files import write_atomically

_DRAWS = 10_000
_DESCRIPTION = """\
make: write clips of JHMDB and their person masks in DAVIS's layout, for `motionmae davis`.
compare: read the scores of `motionmae davis --json`, and print J&F with 95 % intervals, by bootstrap over the films,
because the clips of one film are not independent. Further files are compared with the first one, clip by clip.

examples (MASKS stands for `python -m benchmarks.experiments.real_video.jhmdb_masks`):
  MASKS make --videos jhmdb21 --masks jhmdb21_masks --clips 100 --out data/jhmdb_davis
  motionmae davis RUN --davis data/jhmdb_davis --protocol dino --short-side 120 --json run.json
  motionmae davis RUN --davis data/jhmdb_davis --protocol dino --short-side 120 --features random --json random.json
  MASKS compare random.json run.json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(lambda: _run(parser().parse_args(sys.argv[1:] if argv is None else argv)))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.real_video.jhmdb_masks",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write clips and masks in DAVIS's layout")
    make.add_argument("--videos", type=Path, required=True, help="folder of CLASS/NAME.mp4 or .avi")
    make.add_argument("--masks", type=Path, required=True, help="folder of CLASS/NAME.mat, or of JHMDB's puppet_mask")
    make.add_argument("--out", type=Path, required=True, help="new folder")
    make.add_argument("--clips", type=int, default=0, help="clips, drawn at random (default: all)")
    make.add_argument("--seed", type=int, default=0, help="seed of the draw (0)")
    compare = commands.add_parser("compare", help="print J&F with intervals")
    compare.add_argument("scores", type=Path, nargs="+", help="files of `motionmae davis --json`")
    return made


def _run(options: argparse.Namespace) -> int:
    if options.command == "make":
        count, left_out = make_davis(options.videos, options.masks, options.out, options.clips, options.seed)
        print(f"{options.out}: {count} clips; {left_out} left out, without a person in the first mask")
        return 0
    scores = [read_scores(path) for path in options.scores]
    for path, found in zip(options.scores, scores, strict=True):
        center, low, high = interval(found)
        print(f"{path.stem}: J&F {center:.1f}, 95 % interval {low:.1f} to {high:.1f} ({len(found)} clips)")
    for path, found in zip(options.scores[1:], scores[1:], strict=True):
        if found.keys() != scores[0].keys():
            raise UserError(f"{path} has other clips than {options.scores[0]}: score both on the same folder")
        center, low, high = interval({name: found[name] - scores[0][name] for name in found})
        print(f"{path.stem} - {options.scores[0].stem}: {center:+.1f}, 95 % interval {low:+.1f} to {high:+.1f}")
    return 0


def make_davis(videos: Path, masks: Path, out: Path, clips: int = 0, seed: int = 0) -> tuple[int, int]:
    """Write clips in DAVIS's layout; return their number, and that of clips without a person in the first mask.

    Frames keep their size. Masks are scaled to it. A clip ends where its frames or its masks end.

    Raises:
        UserError: no video has a mask, or ``out`` holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: choose a new folder")
    found = {path.stem: path for path in sorted(videos.rglob("*")) if path.suffix in (".mp4", ".avi")}
    pairs = [(found[path.stem], path) for path in sorted(masks.rglob("*.mat")) if path.stem in found]
    if not pairs:
        raise UserError(f"no video of {videos} has a mask in {masks}: a mask has the name of its video, and .mat")
    if clips:
        pairs = sorted(random.Random(seed).sample(pairs, min(clips, len(pairs))))
    names = [name for video, mask in pairs if (name := _write_clip(video, mask, out))]
    (out / "ImageSets/2017").mkdir(parents=True)
    write_atomically(out / "ImageSets/2017/val.txt", "".join(f"{name}\n" for name in names).encode())
    return len(names), len(pairs) - len(names)


def _write_clip(video: Path, masks: Path, out: Path) -> str:
    """Write one clip and return its name; empty if the first mask is."""
    from scipy.io import loadmat  # of the extra `bench`

    persons: NDArray[np.uint8] = loadmat(masks)["part_mask"].transpose(2, 0, 1)  # (T, H, W), 0 or 1
    if not persons[0].any():
        return ""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", video.stem)
    with open_video(video) as container:
        for number, (frame, person) in enumerate(zip(container.decode(video=0), persons, strict=False)):
            image = frame.to_ndarray(format="bgr24")
            size = image.shape[1], image.shape[0]
            encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            picture = out / "JPEGImages" / RESOLUTION / name / f"{number:05d}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(encoded.tobytes())
            mask = cv2.resize(person, size, interpolation=cv2.INTER_NEAREST)
            write_mask(out / "Annotations" / RESOLUTION / name / f"{number:05d}.png", mask.astype(np.uint8))
    return name


def read_scores(path: Path) -> dict[str, float]:
    """Return J&F in percent of each clip."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return {name: 50 * (score["J"] + score["F"]) for name, score in content["per_object"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no scores ({error!r}): write it by `motionmae davis --json`") from error


def film_of(name: str) -> str:
    """Return the film of a clip of JHMDB: the part of its name before the class and the codes of HMDB51."""
    found = re.match(r"(.*?)_[a-z_]+_[ufhl]_[cn]m_np\d", name)
    return found[1] if found else name


def interval(values: Mapping[str, float], seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over clips and its 95 % interval, by bootstrap over films."""
    films: dict[str, list[float]] = {}
    for name, value in values.items():
        films.setdefault(film_of(name), []).append(value)
    sums = np.array([sum(film) for film in films.values()])
    counts = np.array([len(film) for film in films.values()])
    drawn = np.random.default_rng(seed).integers(len(films), size=(_DRAWS, len(films)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())

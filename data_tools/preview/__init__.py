"""Draw a contact sheet of a folder of shards: one row per video, with frames from first to last, class and file."""

import argparse
from pathlib import Path
from random import Random

import cv2
import numpy as np
from PIL import ExifTags, Image

from data_tools.reporting import damage_as_user_error
from motionmae.commands.app import Command
from motionmae.data.jpeg import decode_frame
from motionmae.data.open_shards import open_reader
from motionmae.data.shards.reader import ShardReader
from motionmae.errors import UserError
from motionmae.files import atomic_path
from motionmae.outputs import SIGNATURE, output_argument, signed
from motionmae.text import printable, say

_EXAMPLES = """\
examples:
  motionmae shards preview data/toy/train --out sheet.png
  motionmae shards preview data/toy/train --out sheet.png --videos 20 --frames 12 --seed 1"""

Picture = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

_CAPTION_HEIGHT = 18
_GAP = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards (--out of `motionmae shards make`)")
    picture = output_argument(signed, ".png", ".jpg", ".jpeg", ".webp")
    parser.add_argument("--out", type=picture, default="preview.png", help="picture to write (%(default)s)")
    parser.add_argument("--videos", type=int, default=12, help="number of rows (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frames per row (%(default)s)")
    parser.add_argument("--height", type=int, default=112, help="height of a frame in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of videos (%(default)s)")


@damage_as_user_error()
def run(arguments: argparse.Namespace) -> int:
    if min(arguments.videos, arguments.frames) < 1 or arguments.height < 16:
        raise UserError("--videos and --frames must be at least 1, and --height at least 16")
    sheet = contact_sheet(arguments.shards, arguments.videos, arguments.frames, arguments.height, arguments.seed)
    try:
        write_picture(arguments.out, sheet)
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be written ({error}): choose another file") from error
    say(f"{arguments.out}: {sheet.shape[1]} x {sheet.shape[0]} pixels")
    return 0


def write_picture(path: Path, picture: Picture) -> None:
    """Write a PNG, JPEG or WebP, according to the extension of ``path``."""
    notes = Image.Exif()
    notes[ExifTags.Base.Software] = SIGNATURE
    form = Image.registered_extensions()[path.suffix]
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, form, exif=notes, quality=95)


def contact_sheet(folder: Path, videos: int, frames: int, height: int, seed: int = 0) -> Picture:
    """Draw ``frames`` evenly spaced frames of ``videos`` random videos: uint8 RGB (height, width, 3)."""
    reader = open_reader(folder)
    samples = reader.manifest.samples
    if not samples:
        raise UserError(f"{folder} holds no samples: see its quarantine.jsonl for the reasons")
    chosen = Random(seed).sample(range(samples), min(videos, samples))
    rows = [_draw_video(reader, sample, frames, height) for sample in chosen]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(padded)


def _draw_video(reader: ShardReader, sample: int, frames: int, height: int) -> Picture:
    meta, details = reader.read_meta(sample), reader.read_json(sample)
    chosen = [round(position) for position in np.linspace(0, meta.frames - 1, frames)]
    width = max(1, round(meta.width * height / meta.height))
    pictures = [
        cv2.resize(decode_frame(jpeg, meta), (width, height), interpolation=cv2.INTER_AREA)
        for jpeg in reader.read_frames(sample, chosen)
    ]
    padded = [np.pad(picture, ((0, 0), (0, _GAP), (0, 0)), constant_values=255) for picture in pictures]
    strip = np.concatenate(padded, axis=1)
    caption = np.full((_CAPTION_HEIGHT, strip.shape[1], 3), 255, np.uint8)
    text = f"{details['class_name'] or 'no label'}  {details['source']}  {meta.frames} frames, {meta.fps:.3g} fps"
    if reader.manifest.encoder.segment_seconds and details["times"]:
        text += f", from {details['times'][0]:.1f} s"
    plain = printable(text).encode("ascii", "backslashreplace").decode()  # OpenCV can draw only ASCII
    cv2.putText(caption, plain, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, strip])


COMMAND = Command(add_arguments, run, description=__doc__ or "", epilog=_EXAMPLES)

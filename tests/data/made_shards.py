"""Shards of rendered clips. Their pixels encode frame, row and column."""

import importlib.util
import os
import struct
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from motionmae.data.shards.format import ShardWriter
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.data.shards.reader import ShardReader

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None and not os.environ.get("CI"),
    reason="FFCV is not installed (pip install 'motionmae[ffcv]')",
)
"""Mark of tests that need FFCV: skipped on a developer's machine without it, never in continuous integration."""

FRAME_STEP = 6  # grey levels between neighbouring frames: survives JPEG


@cache
def picture(frame: int, height: int, width: int) -> bytes:
    """JPEG. Red encodes the frame; green increases downwards and blue to the right, each from 0 to 240."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = frame * FRAME_STEP % 250
    pixels[..., 1] = np.linspace(0, 240, height)[:, None]
    pixels[..., 2] = np.linspace(0, 240, width)
    return simplejpeg.encode_jpeg(pixels, quality=95)


def frame_numbers(clip: np.ndarray) -> list[int]:
    """Read the frame numbers that :func:`picture` wrote into a clip (T, H, W, 3)."""
    return np.rint(np.median(clip[..., 0], axis=(1, 2)) / FRAME_STEP).astype(int).tolist()


def meta(frames: int, height: int, width: int, **changes: object) -> dict[str, object]:
    """A complete KEY.json."""
    return {
        "label": 0,
        "class_name": "none",
        "source": "none.mp4",
        "fps": 25.0,
        "frames": frames,
        "stride": 1,
        "height": height,
        "width": width,
        "times": [number / 25 for number in range(frames)],
    } | changes


def unpack_frames(blob: bytes) -> list[bytes]:
    """The frames of a KEY.jpgs, by the description of the format."""
    (start,) = struct.unpack_from("<I", blob)
    offsets = struct.unpack_from(f"<{start // 4}I", blob)
    return [blob[low:high] for low, high in pairwise(offsets)]


def make_shards(
    folder: Path, counts: tuple[int, ...], frames: int = 4, height: int = 16, width: int = 24, stride: int = 1
) -> Manifest:
    """A folder of shards; the label of a sample is its id."""
    folder.mkdir(exist_ok=True)
    entries, sample = [], 0
    jpegs = [picture(number, height, width) for number in range(frames)]
    for number, count in enumerate(counts):
        with ShardWriter(folder / f"toy-{number:06d}.tar") as shard:
            for _ in range(count):
                shard.write(f"{sample:08d}", jpegs, meta(frames, height, width, label=sample, stride=stride))
                sample += 1
        entries.append(shard.entry)
    settings = EncoderSettings(short_side=min(height, width), jpeg_quality=95, stride=stride)
    manifest = Manifest("toy", "train", tuple(map(str, range(sample))), settings, tuple(entries))
    write_manifest(folder, manifest)
    return manifest


def make_raw_shards(folder: Path, jpegs: ShardReader) -> None:
    """Shards with the pixels of the shards of JPEGs that ``jpegs`` reads."""
    folder.mkdir()
    entries, sample = [], 0
    for entry in jpegs.manifest.shards:
        with ShardWriter(folder / entry.name, "raw") as shard:
            for _ in range(entry.samples):
                content = jpegs.read_json(sample)
                frames = [bytes(frame) for frame in jpegs.read_frames(sample, range(content["frames"]))]
                pictures = [simplejpeg.decode_jpeg(frame, fastupsample=True).tobytes() for frame in frames]
                shard.write(f"{sample:08d}", pictures, content)
                sample += 1
        entries.append(shard.entry)
    encoder = replace(jpegs.manifest.encoder, encoding="raw")
    write_manifest(folder, replace(jpegs.manifest, encoder=encoder, shards=tuple(entries)))


def flip_byte(path: Path, offset: int) -> None:
    """Damage one byte of a file, in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 0x10]))

"""Small real shards, and a config whose steps on them take milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from motionmae.config import (
    CheckpointConfig,
    ClipConfig,
    Config,
    DataConfig,
    EngineConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
)
from motionmae.data.shards.format import ShardWriter
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest

FRAMES, HEIGHT, WIDTH = 8, 40, 52

STEPS = 9
"""Steps of a :func:`tiny_run`: 3 an epoch, 3 epochs."""


def make_shards(folder: Path, shards: int = 2, samples: int = 9, classes: int = 1) -> Path:
    """Write videos of a bar that moves over noise at different speeds; the class is the number modulo ``classes``."""
    folder.mkdir(parents=True)
    entries = []
    for shard in range(shards):
        with ShardWriter(folder / f"train-{shard:06d}.tar") as writer:
            for number in range(samples):
                _write_video(writer, shard * samples + number, classes)
        entries.append(writer.entry)
    settings = EncoderSettings(short_side=HEIGHT, jpeg_quality=90)
    names = tuple(f"bar{number}" for number in range(classes))
    write_manifest(folder, Manifest("bars", "train", names, settings, tuple(entries)))
    return folder


def tiny_run(shards: Path, runs: Path, **sections: dict[str, Any]) -> Config:
    """A real MotionMAE of 32 dimensions, for 1 or 2 ranks; ``engine={"zero_stage": 2}`` changes a section."""
    config = Config(
        name="tiny",
        output_dir=str(runs),
        clip=ClipConfig(frames=4, size=32, stride=1, cube_size=8),
        model=ModelConfig(
            size="vit_ti", width=32, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2
        ),
        data=DataConfig(shards=str(shards), threads=1, prefetch=2, shuffle_window_shards=2),
        optim=OptimConfig(global_batch_size=6, epochs=3, warmup_epochs=1, base_lr=0.02),
        engine=EngineConfig(zero_stage=1, micro_batch_size=3, device="cpu", precision="fp32"),
        checkpoint=CheckpointConfig(every_steps=2),
        log=LogConfig(every_steps=1, tensorboard=False),
    )
    return config.updated(sections)


def _write_video(writer: ShardWriter, number: int, classes: int) -> None:
    random = np.random.default_rng(number)
    background = random.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    jpegs = []
    for frame in range(FRAMES):
        picture = background.copy()
        start = (number * 5 + frame * (1 + number % 4)) % (WIDTH - 8)
        picture[:, start : start + 8] = 230
        jpegs.append(simplejpeg.encode_jpeg(picture, quality=90))
    meta = {
        "label": number % classes,
        "class_name": f"bar{number % classes}",
        "source": f"{number}.mp4",
        "fps": 10.0,
        "frames": FRAMES,
        "stride": 1,
        "height": HEIGHT,
        "width": WIDTH,
        "times": [frame / 10 for frame in range(FRAMES)],
    }
    writer.write(f"{number:08d}", jpegs, meta)

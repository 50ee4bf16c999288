"""A run that is over in a minute on one core, and its shards."""

import json
from pathlib import Path

import numpy as np
import simplejpeg

from motionmae.data.manifest import EncoderSettings, Manifest, write_manifest
from motionmae.data.shards import ShardWriter

STEPS = 60
_SAMPLES, _FRAMES, _SIDE, _BATCH = 16, 16, 40, 8


def write_shards(folder: Path) -> Path:
    """Sixteen videos of drifting noise, in two shards."""
    folder.mkdir()
    random = np.random.default_rng(0)
    entries = []
    for number in range(2):
        with ShardWriter(folder / f"train-{number:06d}.tar") as shard:
            for sample in range(_SAMPLES // 2):
                noise = random.integers(0, 255, (_SIDE, _SIDE + _FRAMES, 3), dtype=np.uint8)
                frames = [np.ascontiguousarray(noise[:, t : t + _SIDE]) for t in range(_FRAMES)]
                shard.write(f"{number}-{sample}", [simplejpeg.encode_jpeg(f) for f in frames], _meta())
        assert shard.entry is not None
        entries.append(shard.entry)
    write_manifest(folder, Manifest("noise", "train", ("noise",), EncoderSettings(_SIDE, 85), tuple(entries)))
    return folder


def _meta() -> dict[str, object]:
    times = [t / 25 for t in range(_FRAMES)]
    shape = {"height": _SIDE, "width": _SIDE, "frames": _FRAMES, "stride": 1, "fps": 25.0, "times": times}
    return {"label": 0, "class_name": "noise", "source": "noise", **shape}


def overrides(shards: Path) -> list[str]:
    """Changes to the config `demo` that make it small, with a metrics row for every step."""
    return [
        f"data.shards={shards}",
        f"optim.batch={_BATCH}",
        f"optim.epochs={STEPS * _BATCH // _SAMPLES}",
        "engine.micro_batch=4",
        "clip.size=32",
        "model.depth=1",
        "model.decoder_depth=1",
        "log.every_steps=1",
        "log.tensorboard=false",
        "checkpoint.every_steps=1000",
    ]


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, object]]:
    """The rows of a run's metrics.jsonl or events.jsonl; none while it is not there."""
    path = run / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

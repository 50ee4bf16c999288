"""A run that takes a minute on one core."""

import json
from pathlib import Path

STEPS = 60
_BATCH, _VIDEOS = 8, 16


def overrides(shards: Path) -> list[str]:
    """Overrides that make the config `demo` small and log every step.

    ``shards`` is ``tests.training.shards.make_shards(folder, samples=8)``: two shards of eight videos.
    """
    return [
        f"data.shards={shards}",
        f"optim.global_batch_size={_BATCH}",
        f"optim.epochs={STEPS * _BATCH // _VIDEOS}",
        "engine.micro_batch_size=4",
        "clip.frames=4",
        "clip.stride=1",
        "clip.size=24",
        "model.depth=1",
        "model.decoder_depth=1",
        "log.every_steps=1",
        "log.tensorboard=false",
        "log.reconstruction_every_steps=0",
        "checkpoint.every_steps=1000",
    ]


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, object]]:
    """Rows of a run's metrics.jsonl or events.jsonl; empty if the file does not exist."""
    path = run / name
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]  # a last line without its end is being written

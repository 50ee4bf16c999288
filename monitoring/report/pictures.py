"""Reconstructions of a run at several steps, as pictures inside the HTML."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from motionmae.runs.directory import RunFolder

Item = TypeVar("Item")

BORROWED = "masked cubes use the mean and contrast of the original, which the model does not predict"


@dataclass(frozen=True)
class Picture:
    """Reconstruction of one clip at one step."""

    title: str
    strips: list[tuple[str, str]]
    """Rows of frames as (label, data URL). The label is empty if the picture contains it."""


def reconstructions(run: Path) -> list[Picture]:
    """Return pictures of the first, a middle and the last step drawn by the run (`log.reconstruction_every_steps`).

    A run without drawn pictures gets one clip, reconstructed at its first, a middle and its last checkpoint.

    Raises:
        UserError: if there is no checkpoint, or the shards are missing.
    """
    drawn = sorted(RunFolder(run).reconstructions.glob("step-*.png"))
    if drawn:
        titles = {path: f"{run.resolve().name}, {path.stem}" for path in _first_middle_last(drawn)}
        return [Picture(title, [("", data_url(path.read_bytes()))]) for path, title in titles.items()]
    import cv2
    import torch

    from motionmae.data.open_shards import open_samples
    from motionmae.evaluation.load_model import load_pretrained
    from motionmae.evaluation.reconstructions import make_block, read_clips
    from motionmae.runs.checkpoint_store import CheckpointStore

    steps = [checkpoint.step for checkpoint in CheckpointStore(RunFolder(run).checkpoints).complete()]
    pictures = []
    for step in _first_middle_last(steps) if steps else [None]:
        loaded = load_pretrained(run, step)
        reader = open_samples(loaded.config.data.model_copy(update={"beton": ""}))
        clips, flow = read_clips(reader, [0], loaded.config)
        found = loaded.model.reconstruct(clips, torch.zeros(1, dtype=torch.int64), loaded.config.mask.ratio, flow)
        strips = []
        for label, strip in make_block("", found, 0, 8).rows:  # float RGB in [0, 1]
            _, png = cv2.imencode(".png", (strip[..., ::-1] * 255).round().astype("uint8"))
            strips.append((label, data_url(png.tobytes())))
        pictures.append(Picture(f"{run.resolve().name}, step {loaded.step or 0:,}", strips))
    return pictures


def data_url(png: bytes) -> str:
    """Encode a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _first_middle_last(items: list[Item]) -> list[Item]:
    return list(dict.fromkeys([items[0], items[len(items) // 2], items[-1]]))

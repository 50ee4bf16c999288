"""What the heads of a run rebuild, at several of its checkpoints, as pictures that go into the page."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from motionmae.runs.directory import RunFolder

Item = TypeVar("Item")

BORROWED = "hidden cubes borrow the true cube's mean and contrast, which the model does not tell"


@dataclass(frozen=True)
class Picture:
    """One clip as a run's model rebuilds it at one step."""

    title: str
    strips: list[tuple[str, str]]
    """Label and picture, a data URL, of rows of frames; a picture that has its labels in it has none here."""


def reconstructions(run: Path) -> list[Picture]:
    """The same clips at the first, a middle and the last step that the run has drawn (``log.reconstruction_every_steps``).

    Of a run that has drawn nothing: one clip at the first, a middle and the last checkpoint that are kept.

    Raises:
        UserError: if there is no checkpoint, or the shards are not there.
    """
    drawn = sorted(RunFolder(run).reconstructions.glob("step-*.png"))
    if drawn:
        return [
            Picture(f"{run.resolve().name}, {path.stem}", [("", data_url(path.read_bytes()))])
            for path in _first_middle_last(drawn)
        ]
    import torch

    from motionmae.data.open_shards import open_reader
    from motionmae.evaluation.load_run import load_pretrained
    from motionmae.evaluation.reconstructions import make_block, read_clips
    from motionmae.runs.checkpoint_store import CheckpointStore

    steps = [checkpoint.step for checkpoint in CheckpointStore(RunFolder(run).checkpoints).complete()]
    pictures = []
    for step in _first_middle_last(steps) if steps else [None]:
        loaded = load_pretrained(run, step)
        reader = open_reader(loaded.config.data.shards, data=loaded.config.data)
        clips, flow = read_clips(reader, [0], loaded.config)
        found = loaded.model.reconstruct(clips, torch.zeros(1, dtype=torch.int64), loaded.config.mask.ratio, flow)
        strips = [(label, embed(strip)) for label, strip in make_block("", found, 0, 8).rows]
        pictures.append(Picture(f"{run.resolve().name}, step {loaded.step:,}", strips))
    return pictures


def embed(picture: Any) -> str:
    """A picture, float (H, W, 3) in [0, 1], as a data URL."""
    import cv2

    _, png = cv2.imencode(".png", (picture[..., ::-1] * 255).round().astype("uint8"))
    return data_url(png.tobytes())


def data_url(png: bytes) -> str:
    """A PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _first_middle_last(items: list[Item]) -> list[Item]:
    return list(dict.fromkeys([items[0], items[len(items) // 2], items[-1]]))

"""What the heads of a run rebuild, at several of its checkpoints, as pictures that go into the page."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motionmae.errors import UserError

BORROWED = "hidden cubes borrow the true cube's mean and contrast, which the model does not tell"


@dataclass(frozen=True)
class Picture:
    """One clip as a run's model rebuilds it at one step."""

    title: str
    strips: list[tuple[str, str]]
    """Label and picture, a data URL, of rows of frames."""


def reconstructions(run: Path) -> list[Picture]:
    """The same clip at the first, a middle and the last checkpoint that are kept.

    Raises:
        UserError: if there is no checkpoint, or the shards are not there.
    """
    import torch

    from motionmae.data.clips import read_clip
    from motionmae.data.reader import ShardReader
    from motionmae.evaluation.pictures import make_block
    from motionmae.evaluation.pretrained import load_pretrained
    from motionmae.training.checkpoint_store import CheckpointStore
    from motionmae.training.runfolder import RunFolder

    steps = [checkpoint.step for checkpoint in CheckpointStore(RunFolder(run).checkpoints).complete()]
    chosen = dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]) if steps else [None]
    pictures = []
    for step in chosen:
        loaded = load_pretrained(run, step)
        if loaded.config.target.motion_source == "flow":
            raise UserError("optical flow is not drawn yet")
        clip = read_clip(ShardReader(loaded.config.data.shards, data=loaded.config.data), 0, loaded.config.clip)
        found = loaded.model.reconstruct(clip[None], torch.zeros(1, dtype=torch.int64), loaded.config.mask.ratio)
        strips = [(label, embed(strip)) for label, strip in make_block("", found, 0, 8).rows]
        pictures.append(Picture(f"{run.resolve().name}, step {loaded.step:,}", strips))
    return pictures


def embed(picture: Any) -> str:
    """A picture, float (H, W, 3) in [0, 1], as a data URL."""
    import cv2

    _, png = cv2.imencode(".png", (picture[..., ::-1] * 255).round().astype("uint8"))
    return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"

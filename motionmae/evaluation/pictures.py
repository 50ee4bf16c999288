"""Figure 3 of the paper as a PNG: what went in, what was hidden, what each head rebuilt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from motionmae.models.motionmae import Reconstruction

Strip = NDArray[np.float32]
BORROWED = "hidden cubes borrow the true cube's mean and contrast: targets are normalised, so the model tells neither"


@dataclass(frozen=True)
class Block:
    """One clip under one mask: the rows of a block of the picture."""

    title: str
    rows: list[tuple[str, Strip]]
    """Label and frames side by side, float (H, n * W, 3) in [0, 1]."""
    true_statistics: bool
    """As in :class:`Reconstruction`."""


def make_block(title: str, found: Reconstruction, clip: int, columns: int) -> Block:
    """Lay the frames of one clip of a batch side by side, in rows as in Figure 3.

    Args:
        title: what stands above the block.
        found: of ``MotionMAE.reconstruct``.
        clip: which clip of the batch.
        columns: frames shown, spread evenly over the clip.
    """
    frames = np.linspace(0, found.clip.shape[1] - 1, min(columns, found.clip.shape[1])).round().astype(int)
    scale = 1.0
    if found.motion is not None:  # one scale for target and prediction, so that they can be compared
        scale = float(np.quantile(np.abs(found.motion[clip].numpy()), 0.995)) or 1.0
    rows = [("original", found.clip), ("masked", found.masked), ("space head", found.space)]
    motion = [("motion target", found.motion), ("time head", found.time)]
    strips = [(label, _strip(frame[clip].numpy()[frames])) for label, frame in rows if frame is not None]
    strips += [(label, _strip(_show(m[clip].numpy()[frames], scale))) for label, m in motion if m is not None]
    return Block(title, strips, found.true_statistics)


def _strip(frames: NDArray[np.float32]) -> Strip:
    """(n, H, W, 3) -> (H, n * W, 3), in [0, 1]."""
    return np.concatenate(list(frames.clip(0, 1)), axis=1)


def _show(motion: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Make motion visible: differences brighter by 1 / scale, signed ones around grey, flow as hue and brightness."""
    if motion.shape[-1] == 2:
        angle, length = np.arctan2(motion[..., 1], motion[..., 0]), np.hypot(motion[..., 0], motion[..., 1])
        hsv = np.stack([np.degrees(angle) % 360, np.ones_like(angle), np.minimum(length / scale, 1)], axis=-1)
        return np.stack([cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_HSV2RGB) for frame in hsv])
    return motion / scale if motion.min() >= -1e-6 else 0.5 + motion / (2 * scale)


def write_picture(blocks: Sequence[Block], out: Path, heading: str) -> None:
    """Write the blocks below each other as a PNG, atomically."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    height, width = blocks[0].rows[0][1].shape[:2]
    strips = sum(len(block.rows) for block in blocks)
    inches = 11.0
    strip_inches = inches * 0.86 * height / width
    figure = Figure(figsize=(inches, strips * (strip_inches + 0.04) + 0.34 * len(blocks) + 0.7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.01, hspace=0.0, w_pad=0.01)  # type: ignore[union-attr, call-arg]
    axes = iter(figure.subplots(strips, 1, squeeze=False).flat)
    for block in blocks:
        for number, (label, strip) in enumerate(block.rows):
            panel = next(axes)
            panel.imshow(strip, interpolation="nearest", aspect="equal")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
            panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
            if number == 0:
                panel.set_title(block.title, loc="left", fontsize=9)
    note = f"\n{BORROWED}" if any(block.true_statistics for block in blocks) else ""
    figure.suptitle(heading + note, fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    figure.savefig(temporary, format="png", dpi=130)
    temporary.replace(out)

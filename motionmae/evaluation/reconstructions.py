"""Draw reconstructions as in Figure 3 of the paper: input, masked input, and the prediction of each decoder head.

The pixel head is the paper's space head, the motion head is the paper's time head.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from motionmae.config import Config
from motionmae.data.clip_decoder import SampleReader, read_clip
from motionmae.data.shards.errors import CorruptSample
from motionmae.errors import UserError
from motionmae.evaluation.video_writer import write_gif, write_mp4
from motionmae.files import atomic_path
from motionmae.models.motionmae import Reconstruction
from motionmae.outputs import SIGNATURE
from motionmae.text import picture_text, printable

Strip = NDArray[np.float32]
NOTE = "masked cubes have the mean and contrast of the true cube, because the model predicts normalised targets"
LINE = 18  # height in pixels of a line of text in a video


@dataclass(frozen=True)
class Block:
    """Image rows for one clip with one mask, as in Figure 3."""

    title: str
    rows: list[tuple[str, Strip]]  # label and n frames side by side, float (H, n * (W + gap), 3) in [0, 1]
    true_statistics: bool  # see :class:`Reconstruction`


def read_clips(reader: SampleReader, samples: Sequence[int], config: Config) -> tuple[Tensor, Tensor | None]:
    """Read the middle clips of samples, uint8 (n, T, H, W, 3), and their optical flow if the model predicts flow.

    A sample that does not exist, cannot be read, or has no flow raises UserError.
    """
    clip = config.clip
    shape = (len(samples), clip.frames, clip.size, clip.size, 2)
    flow = np.zeros(shape, np.float16) if config.target.needs_flow else None
    try:
        clips = [read_clip(reader, n, clip, None if flow is None else flow[i]) for i, n in enumerate(samples)]
    except CorruptSample as error:
        raise UserError(f"{error}: choose another sample, or repair the shards") from error
    return torch.stack(clips), None if flow is None else torch.from_numpy(flow)


def make_block(title: str, found: Reconstruction, clip: int, columns: int, *, masked_only: bool = False) -> Block:
    """Arrange the frames of clip number ``clip`` of a batch in the rows of Figure 3.

    Args:
        columns: number of frames to show, evenly spaced over the clip.
        masked_only: show predictions only; visible cubes are drawn grey or without motion.
    """
    frames = np.linspace(0, found.clip.shape[1] - 1, min(columns, found.clip.shape[1])).round().astype(int)
    removed = _visible(found, clip)[frames] & masked_only  # (n, H, W, 1)
    rows = {"original": found.clip, "masked": found.masked}
    strips = [(label, _strip(row[clip].numpy()[frames])) for label, row in rows.items()]
    if found.space is not None:
        strips.append(("space head", _strip(np.where(removed, 0.5, found.space[clip].numpy()[frames]))))
    if found.motion is not None and found.time is not None:
        truth, predicted = (motion[clip].numpy()[frames] for motion in (found.motion, found.time))
        scale = float(np.quantile(np.abs(truth), 0.995)) or 1.0  # both rows share the scale, to be comparable
        signed = bool(truth.min() < 0)
        strips += [
            ("motion target", _strip(_show(truth, scale, signed))),
            ("time head", _strip(_show(np.where(removed, 0.0, predicted), scale, signed))),
        ]
    return Block(title, strips, found.true_statistics)


def _visible(found: Reconstruction, clip: int) -> NDArray[np.bool_]:
    """Return a mask of the pixels in visible cubes: bool (T, H, W, 1)."""
    frames, height, width = found.clip.shape[1:4]
    masked = found.mask[clip].numpy()  # (temporal patches, grid size, grid size)
    for axis, size in enumerate((frames, height, width)):
        masked = masked.repeat(size // masked.shape[axis], axis)
    return ~masked[..., None]


def write_video(blocks: Sequence[Block], out: Path, heading: str, fps: int = 6) -> None:
    """Write blocks as a GIF or mp4, according to the extension of ``out``.

    Each block becomes a title and a line of panels, which show the rows of Figure 3 side by side. All blocks must come
    from the same model and contain all frames of their clips.
    """
    rows = blocks[0].rows
    height = rows[0][1].shape[0]
    width = height + max(1, height // 32)  # a square frame and its gap
    scale = max(1, round(112 / height))
    whole = len(rows) * width * scale
    note = textwrap.wrap(NOTE, whole // 6) if blocks[0].true_statistics else []
    labels = [(number * width * scale, label) for number, (label, _) in enumerate(rows)]
    head = [*(_line([(0, text)], whole) for text in (heading, *note)), _line(labels, whole)]
    titles = [_line([(0, block.title)], whole) for block in blocks]
    frames = []
    for start in range(0, rows[0][1].shape[1], width):
        lines = list(head)
        for title, block in zip(titles, blocks, strict=True):
            panels = np.concatenate([strip[:, start : start + width] for _, strip in block.rows], axis=1)
            lines += [title, (255 * panels).round().astype(np.uint8).repeat(scale, 0).repeat(scale, 1)]
        frames.append(np.concatenate(lines))
    out.parent.mkdir(parents=True, exist_ok=True)
    (write_gif if out.suffix == ".gif" else write_mp4)(out, frames, fps)


def _line(texts: Sequence[tuple[int, str]], width: int) -> NDArray[np.uint8]:
    """Draw a line of texts, each with the column where it starts, in black on white: (LINE, width, 3)."""
    image = Image.new("RGB", (width, LINE), "white")
    for column, text in texts:
        ImageDraw.Draw(image).text((column + 2, 2), printable(text), fill="black", font=ImageFont.load_default(size=12))
    return np.array(image)


def _strip(frames: NDArray[np.float32]) -> Strip:
    """Join frames side by side, each followed by a white gap: (n, H, W, 3) -> (H, n * (W + gap), 3), in [0, 1]."""
    gap = max(1, frames.shape[2] // 32)
    padded = np.pad(frames.clip(0, 1), ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1)
    return np.concatenate(list(padded), axis=1)


def _show(motion: NDArray[np.float32], scale: float, signed: bool) -> NDArray[np.float32]:
    """Map motion divided by ``scale`` to colours: signed differences around grey, flow as hue and brightness."""
    if motion.shape[-1] == 2:
        angle, length = np.arctan2(motion[..., 1], motion[..., 0]), np.hypot(motion[..., 0], motion[..., 1])
        hsv = np.stack([np.degrees(angle) % 360, np.ones_like(angle), np.minimum(length / scale, 1)], axis=-1)
        return np.stack([cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_HSV2RGB) for frame in hsv])
    return 0.5 + motion / (2 * scale) if signed else motion / scale


def write_png(blocks: Sequence[Block], out: Path, heading: str) -> None:
    """Write blocks one below the other as a PNG."""
    from matplotlib.figure import Figure  # slow to import and needed only in this function

    height, width = blocks[0].rows[0][1].shape[:2]
    strips = sum(len(block.rows) for block in blocks)
    inches, left, head, gap = 11.0, 0.09, 0.6, 0.3
    strip_inches = inches * (1 - left) * height / width
    figure = Figure(figsize=(inches, total := head + gap * len(blocks) + strips * strip_inches))
    top = total - head
    for block in blocks:
        top -= gap
        for number, (label, strip) in enumerate(block.rows):
            top -= strip_inches
            panel = figure.add_axes((left, top / total, 1 - left, 0.97 * strip_inches / total))
            panel.imshow(strip, interpolation="nearest", aspect="auto")
            panel.set_axis_off()
            panel.text(-0.005, 0.5, picture_text(label), transform=panel.transAxes, ha="right", va="center", fontsize=9)
            if number == 0:
                panel.set_title(picture_text(block.title), loc="left", fontsize=9, pad=3)
    note = f"\n{NOTE}" if any(block.true_statistics for block in blocks) else ""
    figure.suptitle(picture_text(heading) + note, fontsize=10, y=1 - 0.1 / total)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": SIGNATURE})

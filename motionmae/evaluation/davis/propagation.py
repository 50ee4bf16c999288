"""Label propagation by nearest neighbours in feature space, by the two published protocols.

For every cell of a frame the most similar cells of some earlier frames are found, and it takes the mean of their
labels, weighted by a softmax over the similarities. Both protocols keep the first frame for ever and the last few
frames, and feed soft labels back.

- ``videowalk`` (Jabri et al. 2020, which the paper follows): 20 frames, top 10, temperature 0.05, within 12 cells in a
  circle in recent frames and anywhere in the first.
- ``dino`` (Caron et al. 2021): 7 frames, top 5, temperature 0.1, within a square of 12 cells either way in all of them;
  before the decision each object's map is stretched to [0, 1].
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SHORT_SIDE = 480
"""Pixels of a frame's short side in both protocols."""
_QUERIES = 512  # cells whose similarities are held at a time


@dataclass(frozen=True)
class Protocol:
    """How labels spread."""

    recent: int
    """Last frames that are looked at, besides the first."""
    top: int
    """KnnResult a cell takes its label from."""
    temperature: float
    radius: float
    """Cells around its own place in which a cell looks."""
    square: bool
    """Whether the radius is of a square (its bound included) or of a circle (excluded)."""
    first_everywhere: bool
    """Whether the radius does not hold for the first frame."""
    long_multiple: int
    """The long side is rounded down to a multiple of this many pixels, at short side 480, and then to whole cells."""
    bilinear_labels: bool
    """Whether the first mask is shrunk bilinearly, else to the nearest pixel."""
    stretch: bool
    """Whether each object's map is stretched to [0, 1] before the decision."""


PROTOCOLS = {
    "videowalk": Protocol(20, 10, 0.05, 12, False, True, 1, True, False),
    "dino": Protocol(7, 5, 0.1, 12, True, False, 64, False, True),
}


def working_size(
    height: int, width: int, cell: int, protocol: Protocol, short_side: int = SHORT_SIDE
) -> tuple[int, int]:
    """Height and width that frames are resized to, both in whole cells."""
    multiple = max(protocol.long_multiple * short_side // SHORT_SIDE, 1)
    short = short_side // cell * cell
    long = short_side * max(height, width) // min(height, width) // multiple * multiple // cell * cell
    return (short, long) if height <= width else (long, short)


def shrink_labels(mask: NDArray[np.uint8], rows: int, columns: int, protocol: Protocol) -> Tensor:
    """One map an object, background first: (H, W) object numbers -> float (objects + 1, rows, columns)."""
    numbers = range(int(mask.max()) + 1)
    if not protocol.bilinear_labels:
        mask = _nearest(mask, rows, columns)
    maps = np.stack([mask == number for number in numbers]).astype(np.float32)
    if protocol.bilinear_labels:
        maps = np.stack([cv2.resize(one, (columns, rows), interpolation=cv2.INTER_LINEAR) for one in maps])
    return torch.from_numpy(maps)


def _nearest(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A mask of another size; Pillow takes the pixel at a cell's centre, as DINO does, and OpenCV its first one."""
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def propagate(features: Iterable[Tensor], labels: Tensor, protocol: Protocol) -> Iterator[Tensor]:
    """Spread labels from the first frame through the others, one by one.

    Args:
        features: (width, rows, columns) of each frame in order, the first included; of any length, on any device.
        labels: (objects + 1, rows, columns) of the first.
        protocol: how.

    Yields:
        The soft labels of every frame but the first, as ``labels``.
    """
    frames = iter(features)
    first = functional.normalize(next(frames).flatten(1), dim=0)  # (width, cells)
    rows, columns = labels.shape[1:]
    start = labels.flatten(1).to(first.device)
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=protocol.recent)
    near = _neighbourhood(rows, columns, protocol).to(first.device)
    for frame in frames:
        current = functional.normalize(frame.flatten(1), dim=0)
        keys = torch.cat([first, *(key for key, _ in recent)], dim=1)  # (width, contexts * cells)
        values = torch.cat([start, *(value for _, value in recent)], dim=1)
        found = torch.cat(
            [
                _answer(part, keys, values, places, protocol)
                for part, places in zip(current.split(_QUERIES, 1), near.split(_QUERIES), strict=True)
            ],
            dim=1,
        )
        recent.append((current, found))
        yield found.view(-1, rows, columns).cpu()


def _answer(queries: Tensor, keys: Tensor, values: Tensor, near: Tensor, protocol: Protocol) -> Tensor:
    """Labels (objects + 1, q) of queries (width, q), by keys (width, k), their values and near, bool (q, cells)."""
    similarity = queries.t() @ keys / protocol.temperature  # (q, contexts * cells)
    allowed = near.repeat(1, keys.shape[1] // near.shape[1])
    if protocol.first_everywhere:
        allowed[:, : near.shape[1]] = True
    similarity.masked_fill_(~allowed, -torch.inf)
    best, places = similarity.topk(protocol.top, dim=1)
    weights = best.softmax(1)  # (q, top)
    return (values[:, places] * weights).sum(2)


def _neighbourhood(rows: int, columns: int, protocol: Protocol) -> Tensor:
    """Whether a cell may look at another of a frame: bool (cells, cells)."""
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1).float()
    away = (place[:, :, None] - place[:, None]).abs()  # (2, cells, cells)
    return (away <= protocol.radius).all(0) if protocol.square else away.norm(dim=0) < protocol.radius


def decide(soft: Tensor, height: int, width: int, cell: float, protocol: Protocol) -> NDArray[np.uint8]:
    """Object numbers (height, width) of soft labels (objects + 1, rows, columns): enlarged bilinearly, then argmax.

    ``cell`` is the side of a cell in pixels, in a frame of short side 480.
    """
    maps = functional.interpolate(soft[None], scale_factor=cell, mode="bilinear", align_corners=False)[0]
    if protocol.stretch:
        low = maps.amin((1, 2), keepdim=True)
        high = (maps - low).amax((1, 2), keepdim=True)
        maps = torch.where(high > 0, (maps - low) / high.clamp_min(1e-12), maps)
    chosen = maps.argmax(0).to(torch.uint8).numpy()
    return _nearest(chosen, height, width)

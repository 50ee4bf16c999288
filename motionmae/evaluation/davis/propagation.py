"""Label propagation by nearest neighbours in feature space, with two published protocols.

A cell is one position of the feature grid: for an encoder, a patch of 16 x 16 pixels. Each cell of a frame gets the
mean label of its most similar cells in the context frames, weighted by a softmax over the similarities. The context
frames are the first frame and the most recent frames. Their labels are soft.

- ``videowalk`` (Jabri et al. 2020, used by the paper): 20 recent frames, top 10, temperature 0.05, a circular
  neighbourhood of radius 12 cells in recent frames and no limit in the first frame.
- ``dino`` (Caron et al. 2021): 7 recent frames, top 5, temperature 0.1, a square neighbourhood of radius 12 cells in
  all frames. Each object's map is scaled to [0, 1] before the argmax.
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

SHORT_SIDE = 480  # short side of a frame in pixels, in both protocols
_QUERIES = 512  # number of query cells whose labels are computed at once


@dataclass(frozen=True)
class Protocol:
    """Rules of label propagation."""

    recent: int  # number of recent context frames, besides the first frame
    top: int  # number of most similar cells whose labels are averaged
    temperature: float
    radius: float  # radius of the neighbourhood, in cells
    square: bool  # whether the neighbourhood is a square (radius inclusive) or a circle (radius exclusive)
    first_everywhere: bool  # whether all cells of the first frame are neighbours
    long_multiple: int  # the long side at short side 480 is rounded down to a multiple of this, then to whole cells
    bilinear_labels: bool  # whether the first mask is resized bilinearly, otherwise by nearest neighbour
    stretch: bool  # whether each object's map is scaled to [0, 1] before the argmax


PROTOCOLS = {
    "videowalk": Protocol(20, 10, 0.05, 12, False, True, 1, True, False),
    "dino": Protocol(7, 5, 0.1, 12, True, False, 64, False, True),
}


def working_size(
    height: int, width: int, cell: int, protocol: Protocol, short_side: int = SHORT_SIDE
) -> tuple[int, int]:
    """Return the height and width to which frames are resized, both multiples of ``cell`` pixels."""
    multiple = max(protocol.long_multiple * short_side // SHORT_SIDE, 1)
    short = short_side // cell * cell
    long = short_side * max(height, width) // min(height, width) // multiple * multiple // cell * cell
    return (short, long) if height <= width else (long, short)


def shrink_labels(mask: NDArray[np.uint8], rows: int, columns: int, protocol: Protocol) -> Tensor:
    """Convert object numbers (H, W) to one map per object, background first: float (objects + 1, rows, columns)."""
    numbers = range(int(mask.max()) + 1)
    if not protocol.bilinear_labels:
        mask = _nearest(mask, rows, columns)
    maps = np.stack([mask == number for number in numbers]).astype(np.float32)
    if protocol.bilinear_labels:
        maps = np.stack([cv2.resize(one, (columns, rows), interpolation=cv2.INTER_LINEAR) for one in maps])
    return torch.from_numpy(maps)


def _nearest(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize by nearest neighbour with Pillow, which samples the centre of a cell as DINO does, unlike OpenCV."""
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def propagate(features: Iterable[Tensor], labels: Tensor, protocol: Protocol) -> Iterator[Tensor]:
    """Yield the soft labels (objects + 1, rows, columns) of every frame after the first, on the CPU.

    ``features`` yields a tensor (channels, rows, columns) for each frame in order, including the first frame, on any
    device. The channels are the width of the encoder.
    ``labels`` are (objects + 1, rows, columns) of the first frame.
    """
    frames = iter(features)
    first = functional.normalize(next(frames).flatten(1), dim=0)  # (width, cells)
    rows, columns = labels.shape[1:]
    start = labels.flatten(1).to(first.device)
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=protocol.recent)
    allowed = _neighbourhood(rows, columns, protocol).to(first.device)
    for frame in frames:
        current = functional.normalize(frame.flatten(1), dim=0)
        keys = torch.cat([first, *(key for key, _ in recent)], dim=1)  # (width, contexts * cells)
        values = torch.cat([start, *(value for _, value in recent)], dim=1)
        parts = zip(current.split(_QUERIES, 1), allowed.split(_QUERIES), strict=True)
        found = torch.cat([_labels_of(queries, keys, values, near, protocol) for queries, near in parts], dim=1)
        recent.append((current, found))
        yield found.view(-1, rows, columns).cpu()


def _labels_of(queries: Tensor, keys: Tensor, values: Tensor, near: Tensor, protocol: Protocol) -> Tensor:
    """Return the labels (objects + 1, q) of query cells with the features ``queries`` (width, q).

    ``keys`` (width, contexts * cells) and ``values`` (objects + 1, contexts * cells) are features and labels of the
    context frames. ``near``, bool (q, cells), marks the neighbourhood of each query.
    """
    similarity = queries.t() @ keys / protocol.temperature  # (q, contexts * cells)
    allowed = near.repeat(1, keys.shape[1] // near.shape[1])
    if protocol.first_everywhere:
        allowed[:, : near.shape[1]] = True
    similarity.masked_fill_(~allowed, -torch.inf)
    best, index = similarity.topk(protocol.top, dim=1)
    weights = best.softmax(1)  # (q, top)
    return (values[:, index] * weights).sum(2)


def _neighbourhood(rows: int, columns: int, protocol: Protocol) -> Tensor:
    """Return which cells (second axis) are in the neighbourhood of each cell (first axis): bool (cells, cells)."""
    position = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1).float()
    distance = (position[:, :, None] - position[:, None]).abs()  # (2, cells, cells)
    return (distance <= protocol.radius).all(0) if protocol.square else distance.norm(dim=0) < protocol.radius


def decide(soft: Tensor, height: int, width: int, cell: float, protocol: Protocol) -> NDArray[np.uint8]:
    """Map soft labels (objects + 1, rows, columns) to object numbers (height, width): resize bilinearly, then argmax.

    ``cell`` is the size of a cell in pixels of a frame whose short side is 480.
    """
    maps = functional.interpolate(soft[None], scale_factor=cell, mode="bilinear", align_corners=False)[0]
    if protocol.stretch:
        low = maps.amin((1, 2), keepdim=True)
        high = (maps - low).amax((1, 2), keepdim=True)
        maps = torch.where(high > 0, (maps - low) / high.clamp_min(1e-12), maps)
    chosen = maps.argmax(0).to(torch.uint8).numpy()
    return _nearest(chosen, height, width)

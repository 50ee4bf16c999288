"""One way to put many videos through a frozen model: on all ranks, each video once, resumable, nothing substituted.

Every rank appends what it has computed to a file of its own, one line a video. Whoever starts again, on however many
ranks, computes what is in none of the files. A video has forward passes of its own, so its values do not depend on
which rank computed them or on what else was asked for.
"""

import base64
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from motionmae.data.corruption import CorruptSample
from motionmae.data.video import UnreadableVideo
from motionmae.training.distributed import Rank, broadcast_object
from motionmae.training.events import LineFile, Row, read_rows

UNREADABLE = (CorruptSample, UnreadableVideo)
"""What reading a video raises where the video is at fault."""


@dataclass(frozen=True)
class Results:
    """What became of every item, by its name."""

    values: dict[str, np.ndarray]
    """float32 arrays of those that could be read."""
    unreadable: dict[str, str]
    """The reason of the others."""


def infer(
    items: Sequence[str],
    read: Callable[[str], np.ndarray],
    compute: Callable[[np.ndarray], np.ndarray],
    parts: Path,
    rank: Rank,
    title: str,
    threads: int = 2,
) -> Results:
    """Compute every item that is not yet in ``parts``, shared among the ranks, and return all. Collective.

    Args:
        items: names, each once, the same on every rank.
        read: makes a model's input of an item, in threads; one of UNREADABLE where it cannot be read.
        compute: makes float32 values of it.
        parts: folder of what is done, which must hold nothing of another model or other settings.
        rank: this process.
        title: what the progress bar says.
        threads: that read ahead.
    """
    parts.mkdir(parents=True, exist_ok=True)
    done = broadcast_object(sorted(_rows(parts)) if rank.is_first else None)
    left = sorted(set(items) - set(done))[rank.rank :: rank.world]
    file = LineFile(parts / f"{uuid.uuid4().hex}.jsonl")
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not rank.is_first or not left) as progress:
        for name, inputs in progress.track(_read_ahead(left, read, threads), total=len(left)):
            if isinstance(inputs, Exception):
                file.append({"item": name, "unreadable": str(inputs)})
                continue
            values = compute(inputs).astype("<f4")
            packed = base64.b64encode(values.tobytes()).decode()
            file.append({"item": name, "shape": values.shape, "values": packed})
    file.close()
    dist.barrier()
    rows = _rows(parts)
    found, unreadable = {}, {}
    for name in items:
        row = rows[name]
        if "unreadable" in row:
            unreadable[name] = row["unreadable"]
        else:
            found[name] = np.frombuffer(base64.b64decode(row["values"]), "<f4").reshape(row["shape"])
    return Results(found, unreadable)


def _rows(parts: Path) -> dict[str, Row]:
    """All lines of all files, by item."""
    return {row["item"]: row for path in sorted(parts.glob("*.jsonl")) for row in read_rows(path)}


def _read_ahead(
    items: Sequence[str], read: Callable[[str], np.ndarray], threads: int
) -> Iterator[tuple[str, np.ndarray | Exception]]:
    """Each item with what was read of it, or what was wrong with it; two for each thread are held ready."""

    def attempt(name: str) -> np.ndarray | Exception:
        try:
            return read(name)
        except UNREADABLE as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[str, Future[np.ndarray | Exception]]] = deque()
        for name in items:
            ahead.append((name, pool.submit(attempt, name)))
            if len(ahead) > 2 * threads:
                name, future = ahead.popleft()
                yield name, future.result()
        for name, future in ahead:
            yield name, future.result()


class FrozenModel:
    """A model that only looks: on its device, in evaluation mode, under the precision of its training.

    Args:
        model: what is called.
        rank: whose device it goes to.
        precision: fp32, bf16 or fp16.
        batch: clips of one forward pass.
    """

    def __init__(self, model: nn.Module, rank: Rank, precision: str, batch: int):
        self._model = model.eval().requires_grad_(False).to(rank.device)
        self._device, self._batch = rank.device, batch
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Tensor:
        """The model's float32 output for uint8 clips (n, T, S, S, 3), on the CPU."""
        outputs = []
        for part in torch.from_numpy(clips).split(self._batch):
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
                outputs.append(self._model(part.to(self._device)).float().cpu())
        return torch.cat(outputs)

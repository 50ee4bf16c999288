"""One way to put many videos through a frozen model: on all ranks, each video once, resumable, nothing substituted.

Every rank appends what it has computed to a file of its own, one line a video. Whoever starts again, on however many
ranks, computes what is in none of the files; a video that could not be read is in none, and is tried again. A video has
forward passes of its own, so its values do not depend on which rank computed them or on what else was asked for.
"""

import base64
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from motionmae.data.shards.errors import CorruptSample
from motionmae.data.shards.reader import ShardReader
from motionmae.data.video import UnreadableVideo
from motionmae.distributed.context import DistributedContext, broadcast_object, gather_objects, run_on_rank_zero
from motionmae.evaluation.cache_key import CacheKey
from motionmae.runs.events import LineFile, Row, read_rows

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
    items: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    compute: Callable[[np.ndarray], np.ndarray],
    parts: Path,
    identity: CacheKey,
    rank: DistributedContext,
    title: str,
    threads: int = 2,
) -> Results:
    """Compute every item that is not yet in ``parts``, shared among the ranks, and return all. Collective.

    Args:
        items: names, with a mark that changes with the video where ``identity`` does not; the same on every rank.
        read: makes a model's input of an item, in threads; one of UNREADABLE where it cannot be read.
        compute: makes float32 values of it.
        parts: folder of what is done.
        identity: whose it is.
        rank: this process.
        title: what the progress bar says.
        threads: that read ahead.

    Raises:
        UserError: ``parts`` is of another identity.
    """
    run_on_rank_zero(rank, lambda: identity.bind(parts))
    done = broadcast_object(sorted(_rows(parts, items)) if rank.is_rank_zero else None)
    left = sorted(set(items) - set(done))[rank.rank :: rank.world]
    unreadable: dict[str, str] = {}
    file = LineFile(parts / f"{uuid.uuid4().hex}.jsonl")
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not rank.is_rank_zero or not left) as progress:
        for name, inputs in progress.track(_read_ahead(left, read, threads), total=len(left)):
            if isinstance(inputs, Exception):
                unreadable[name] = str(inputs)
                continue
            values = compute(inputs).astype("<f4")
            packed = base64.b64encode(values.tobytes()).decode()
            file.append({"item": name, "mark": items[name], "shape": values.shape, "values": packed})
    file.close()
    reasons = {name: why for part in gather_objects(unreadable) for name, why in part.items()}  # all have written now
    rows = _rows(parts, items)
    found = {
        name: np.frombuffer(base64.b64decode(rows[name]["values"]), "<f4").reshape(rows[name]["shape"])
        for name in items
        if name not in reasons
    }
    return Results(found, {name: reasons[name] for name in items if name in reasons})


def items_of(reader: ShardReader) -> dict[str, str]:
    """Every sample of shards by its number; they need no marks, their manifest has a fingerprint."""
    return {str(sample): "" for sample in range(reader.manifest.samples)}


def _rows(parts: Path, items: Mapping[str, str]) -> dict[str, Row]:
    """The lines of all files that are of ``items`` as they are now, by item."""
    rows = (row for path in sorted(parts.glob("*.jsonl")) for row in read_rows(path))
    return {row["item"]: row for row in rows if items.get(row["item"]) == row["mark"]}


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

    def __init__(self, model: nn.Module, rank: DistributedContext, precision: str, batch: int):
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

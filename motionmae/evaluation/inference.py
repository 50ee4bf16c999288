"""Run a frozen model over many videos, distributed over all ranks and resumable.

Each rank appends its results to its own file, one line per video. A restart, on any number of ranks, computes the
videos that no file contains. The files do not contain unreadable videos: a restart tries to read these videos again.
Videos do not share forward passes. The result of a video therefore depends neither on the rank nor on other videos.
"""

import base64
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from motionmae.config import Config
from motionmae.data.held_out.read_ahead import read_ahead
from motionmae.data.shards.reader import ShardReader
from motionmae.distributed.context import DistributedContext, broadcast_object, gather_objects, run_on_rank_zero
from motionmae.engine.precision import resolve_precision
from motionmae.evaluation.cache_key import CacheKey
from motionmae.runs.events import LineFile, Row, read_rows
from motionmae.screen import progress_of

_PART = re.compile(r"[0-9a-f]{32}\.jsonl")  # file of a rank


@dataclass(frozen=True)
class Results:
    """Results of all items. The dictionaries map the name of an item to its result."""

    values: dict[str, np.ndarray]  # float32 arrays of the readable items
    unreadable: dict[str, str]  # reason why each other item could not be read


def infer(
    items: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    compute: Callable[[np.ndarray], np.ndarray],
    parts: Path,
    key: CacheKey,
    rank: DistributedContext,
    title: str,
    threads: int = 2,
) -> Results:
    """Compute all items that are not in ``parts`` yet, and return all results. All ranks must call this.

    Args:
        items: maps each item's name to a stamp, the same on every rank. A changed stamp or ``key`` recomputes the item.
        read: returns the model's input for an item, or raises one of UNREADABLE. Runs in threads.
        compute: maps the model's input to float32 values.
        parts: folder of the finished results.

    Raises:
        UserError: ``parts`` has a different cache key.
    """
    run_on_rank_zero(rank, lambda: key.bind(parts))
    done = broadcast_object(sorted(_rows(parts, items)) if rank.is_rank_zero else None)
    left = sorted(set(items) - set(done))[rank.rank :: rank.world]
    unreadable: dict[str, str] = {}
    file = LineFile(parts / f"{uuid.uuid4().hex}.jsonl")
    with progress_of(disable=not rank.is_rank_zero or not left) as progress:
        for name, inputs in progress.track(read_ahead(left, read, threads), total=len(left), description=title):
            if isinstance(inputs, Exception):
                unreadable[name] = str(inputs)
                continue
            values = compute(inputs).astype("<f4")
            packed = base64.b64encode(values.tobytes()).decode()
            file.append({"item": name, "stamp": items[name], "shape": values.shape, "values": packed})
    file.close()
    gathered = gather_objects(unreadable)  # also a barrier: afterwards all ranks have written their files
    reasons = {name: why for part in gathered for name, why in part.items()}
    rows, found = _rows(parts, items), {}
    for name in items:
        if name not in reasons:
            values = np.frombuffer(base64.b64decode(rows[name]["values"]), "<f4")
            found[name] = values.reshape(rows[name]["shape"])
    return Results(found, {name: reasons[name] for name in items if name in reasons})


def items_of(reader: ShardReader) -> dict[str, str]:
    """Return all sample numbers. Their stamps are empty, because the manifest's fingerprint covers changes."""
    return {str(sample): "" for sample in range(reader.manifest.samples)}


def _rows(parts: Path, items: Mapping[str, str]) -> dict[str, Row]:
    """Read the finished results of all ranks for the inputs that have not changed since."""
    rows = (row for path in sorted(parts.iterdir()) if _PART.fullmatch(path.name) for row in read_rows(path))
    return {row["item"]: row for row in rows if items.get(row["item"]) == row["stamp"]}


class FrozenModel:
    """Model in evaluation mode and in the precision of its training. A forward pass takes ``batch`` clips."""

    def __init__(self, model: nn.Module, config: Config, device: torch.device, batch: int):
        self.model = model.eval().requires_grad_(False).to(device)
        self.precision = resolve_precision(config.engine.precision, device)
        self._device, self._batch = device, batch
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Tensor:
        """Return the model's output for clips, uint8 (n, T, S, S, 3), as float32 on the CPU."""
        outputs = []
        for part in torch.from_numpy(clips).split(self._batch):
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
                outputs.append(self.model(part.to(self._device)).float().cpu())
        return torch.cat(outputs)

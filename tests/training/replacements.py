"""A real trainer with replacements for its engine, loader and other parts, and what it tells others."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import torch

from motionmae.distributed.context import DistributedContext
from motionmae.distributed.stop_requests import Request, StopSignals
from motionmae.runs.directory import RunFolder
from motionmae.runs.end_reason import EndReason
from motionmae.runs.events import EventLog
from motionmae.training.state import TrainState
from motionmae.training.trainer import Trainer
from tests.training.shards import tiny_run

NOTHING = Request(None, save=False)
STOP = Request(EndReason.PREEMPTED, save=False)


class Told:
    """A sink, a callback and a log that keep what they are told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.calls: list[tuple[str, Any]] = []

    def event(self, row: dict[str, Any]) -> None:
        self.events.append({key: value for key, value in row.items() if key not in ("attempt", "time")})

    def metrics(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *values: self.calls.append((name, *values))  # type: ignore[arg-type]


def a_trainer(tmp_path: Path, told: Told, rank: int = 0, **sections: Any) -> Any:
    """A trainer whose engine, loader and memory copies are replacements; it has taken 4 of 9 steps."""
    config = tiny_run(tmp_path / "shards", tmp_path / "runs", **sections)
    trainer = Trainer(
        config=config,
        task=SimpleNamespace(losses=("loss",), state=lambda: {"class_names": ["a"]}),
        rank=DistributedContext(rank=rank, local_rank=rank, world=1, device=torch.device("cpu")),
        folder=RunFolder(tmp_path / "runs/tiny"),
        lease=Mock(),
        signals=StopSignals(),
        engine=SimpleNamespace(
            optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1),
            applied=True, stage=2, precision="bf16", loss_scale=None,
        ),
        loader=SimpleNamespace(
            steps_per_epoch=3, corrupt_samples={}, batches=lambda step: iter([step]), state=lambda step: {"at": step}
        ),
        watchdog=Mock(during=lambda *_: nullcontext()),
        events=EventLog("a", [told]),
        callbacks=[told],
        log=told.lines.append,
        state=TrainState(step=4, data_step=6),
        memory_copies=Mock(nodes=["n"], newest=None, is_due=lambda step: False),
        newest_saved="step-3",
    )  # type: ignore[arg-type]  # fmt: skip
    trainer.checkpointer = Mock()
    trainer.checkpointer.wait.return_value = trainer.checkpointer.poll.return_value = None
    trainer.stop_requests = Mock()
    return trainer

"""What ranks do in the tests of whole runs."""

import resource
import sys
import time
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from motionmae.config import Config
from motionmae.distributed.process_group import init_distributed
from motionmae.errors import UserError
from motionmae.runs.end_reason import classify_error
from motionmae.training import trainer
from motionmae.training.tasks import train_task


def run_all(configs: list[Config]) -> list[str]:
    """Run attempts one after the other in the same processes; how each ended."""
    init_distributed(configs[0].engine)
    endings = []
    for config in configs:
        try:
            endings.append(train_task(config).name)
        except UserError as error:
            endings.append(str(error))
    return endings


def pretrain_with_small_files(config: Config, limit: int) -> list[str]:
    """Run while no file of the last rank may grow beyond ``limit`` bytes."""
    rank = init_distributed(config.engine)
    if rank.rank == rank.world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return run_all([config])


def pretrain_to_exit(config: Config) -> tuple[str, str]:
    """Run one attempt, however it ends: the class of its exit and what was said about it."""
    try:
        return train_task(config).name, ""
    except Exception as error:
        return classify_error(error).name, str(error)


def pretrain_and_hang(config: Config, step: int) -> None:
    """Run; the last rank never comes back from ``step``."""
    take_step = trainer.take_step

    def take_step_or_hang(run: trainer.Run, *arguments: Any) -> trainer.Step:
        if run.state.step + 1 == step and run.rank.rank == run.rank.world - 1:
            time.sleep(1e6)
        return take_step(run, *arguments)

    trainer.take_step = take_step_or_hang
    train_task(config)


aten = torch.ops.aten
WAITING_OPERATORS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal}
"""What makes the host wait for a GPU: numbers read (item, bool, float), and results whose size is a number."""
WAITING_METHODS = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}


ROOMS = ("training", "engine", "distributed", "checkpointing")


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, by the step's part and the function of training that did it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in WAITING_OPERATORS:
            self.note()
        return function(*args, **(kwargs or {}))

    def note(self) -> None:
        frame, names = sys._getframe(1), []
        while frame := frame.f_back:
            if any(f"/motionmae/{room}/" in frame.f_code.co_filename for room in ROOMS):
                names.append(frame.f_code.co_name)
        if "train" in names:  # beyond the start-up: the part is what the loop called
            self.found[names[names.index("train") - 1], names[0]] += 1


class WaitingMethods(TorchFunctionMode):
    """Notes for :class:`Waits` what the CPU does without an operator."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITING_METHODS:
            self.waits.note()
        return function(*args, **(kwargs or {}))


def pretrain_and_count_waits(configs: list[Config]) -> list[dict[tuple[str, str], int]]:
    """Run, and return for each what :class:`Waits` found."""
    init_distributed(configs[0].engine)
    answers = []
    for config in configs:
        with Waits() as waits, WaitingMethods(waits):
            train_task(config)
        answers.append(dict(waits.found))
    return answers

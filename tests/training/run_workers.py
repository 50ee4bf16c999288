"""Work of the ranks in tests of whole runs."""

import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from motionmae.config import Config
from motionmae.data.loader import Batch
from motionmae.distributed.process_group import init_distributed
from motionmae.errors import UserError
from motionmae.runs.end_reason import classify_error
from motionmae.training.callbacks.metrics import StepResult
from motionmae.training.setup import run_training
from motionmae.training.trainer import Trainer


def run_all(configs: list[Config], variables: Mapping[str, str] | None = None) -> list[str]:
    """Run attempts one after the other in the same processes; return the end reason or error of each.

    ``variables`` change the environment. The fork server has that of the first test that used it.
    """
    os.environ.update(variables or {})
    init_distributed(configs[0].engine)
    ends = []
    for config in configs:
        try:
            ends.append(run_training(config).name)
        except UserError as error:
            ends.append(str(error))
    return ends


def pretrain_with_small_files(config: Config, limit: int) -> list[str]:
    """Run with files of the last rank limited to ``limit`` bytes."""
    rank = init_distributed(config.engine)
    if rank.rank == rank.world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return run_all([config])


def pretrain_to_exit(config: Config) -> tuple[str, str]:
    """Run one attempt; return the name of its end reason and the message of its error."""
    try:
        return run_training(config).name, ""
    except Exception as error:
        return classify_error(error).name, str(error)


def pretrain_and_hang(config: Config, step: int) -> None:
    """Run; the last rank hangs in ``step``."""
    forward_backward = Trainer.forward_backward

    def forward_backward_or_hang(trainer: Trainer, batches: Iterator[Batch]) -> StepResult:
        if trainer.state.step + 1 == step and trainer.rank.rank == trainer.rank.world - 1:
            time.sleep(1e6)
        return forward_backward(trainer, batches)

    Trainer.forward_backward = forward_backward_or_hang  # type: ignore[method-assign]
    run_training(config)


aten = torch.ops.aten
WAITING_OPERATORS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal}
"""Operators that make the host wait for a GPU: reads of numbers (item, bool, float), and results of unknown size."""
WAITING_METHODS = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}


PACKAGES = ("training", "engine", "distributed", "checkpointing")


class Stream:
    """A stream of a device whose work is done at once."""

    def __init__(self, device: int | None = None) -> None:
        del device

    def wait_stream(self, other: "Stream") -> None:
        del other


def run_like_a_gpu(note: Callable[[], None]) -> None:
    """Make DeepSpeed use streams and waits on the CPU as on a GPU, for this process; ``note`` gets each device wait."""
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()

    class LikeGpu(type(accelerator)):  # type: ignore[misc]
        Stream = current_stream = default_stream = Stream

        def is_synchronized_device(self) -> bool:
            return False

        resolves_data_dependency = is_synchronized_device

        def synchronize(self, device_index: int | None = None) -> None:
            note()

    accelerator.__class__ = LikeGpu
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign,assignment]


class Waits(TorchDispatchMode):
    """Counts host waits for a GPU, by the method that ``Trainer.fit`` called and the function that waited."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in WAITING_OPERATORS:
            self.note()
        return function(*args, **(kwargs or {}))

    def note_device(self) -> None:
        self.note("device")

    def note(self, what: str = "") -> None:
        """Count a wait for a value, or for the whole ``device``."""
        frame, names = sys._getframe(1), []
        while frame := frame.f_back:
            if any(f"/motionmae/{package}/" in frame.f_code.co_filename for package in PACKAGES):
                names.append(frame.f_code.co_name)
        if "fit" in names:  # after start-up
            self.found[names[names.index("fit") - 1], what or names[0]] += 1


class WaitingMethods(TorchFunctionMode):
    """Counts for :class:`Waits` the methods that call no operator on a CPU."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITING_METHODS:
            self.waits.note()
        return function(*args, **(kwargs or {}))


def pretrain_and_count_waits(configs: list[Config]) -> list[dict[tuple[str, str], int]]:
    """Run each config and return the host waits of each."""
    init_distributed(configs[0].engine)
    answers = []
    for config in configs:
        with Waits() as waits, WaitingMethods(waits):
            run_like_a_gpu(waits.note_device)
            run_training(config)
        answers.append(dict(waits.found))
    return answers


def pretrain_without_memory(config: Config) -> tuple[str, str]:
    """Run; the third step finds no memory, as torch's allocator for GPUs says it. Return the error's type and text."""
    forward_backward = Trainer.forward_backward

    def fail(trainer: Trainer, batches: Iterator[Batch]) -> StepResult:
        if trainer.state.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward_backward(trainer, batches)

    Trainer.forward_backward = fail  # type: ignore[method-assign]
    try:
        run_training(config)
    except UserError as error:
        return type(error).__name__, str(error)
    return "", ""

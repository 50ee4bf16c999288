"""One sentence for lack of memory: what would fit, and what else helps."""

from typing import Any

import pytest
import torch

from motionmae.config import Config
from motionmae.distributed.context import DistributedContext
from motionmae.planning.gpus import USABLE
from motionmae.training import out_of_memory
from motionmae.training.out_of_memory import OutOfMemoryError, explain_out_of_memory

CPU = DistributedContext(rank=1, local_rank=1, world=2, device=torch.device("cpu"))
GPU = DistributedContext(rank=3, local_rank=1, world=2, device=torch.device("cuda", 1))


def config(**settings: Any) -> Config:
    """Micro-batches of 8 of a batch of 48 on two ranks: 24 for each."""
    changes = {"optim.global_batch_size": 48, "engine.micro_batch_size": 8, "launch.gpus_per_node": 0, **settings}
    return Config().updated(changes)


def sentence(monkeypatch: pytest.MonkeyPatch, largest: int, rank: DistributedContext, **settings: Any) -> str:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(out_of_memory, "_memory", lambda device: 80_400_000_000)
    monkeypatch.setattr(out_of_memory, "resolve_precision", lambda precision, device: "bf16")
    monkeypatch.setattr(out_of_memory, "largest_micro_batch", lambda *words: asked.append(words) or largest)
    with pytest.raises(OutOfMemoryError) as caught, explain_out_of_memory(config(**settings), rank):
        raise torch.OutOfMemoryError("CUDA out of memory")
    ((estimated, world, size),) = asked
    assert (world, size, estimated.engine.precision) == (2, pytest.approx(USABLE * 80.4e9), "bf16")
    assert estimated.launch.gpus_per_node == (1 if rank is GPU else 0)
    return str(caught.value)


@pytest.mark.parametrize(
    ("largest", "fitting"),
    [(7, 6), (6, 6), (5, 4), (1, 1)],  # 8 does not fit; 5 and 7 do not divide 24
)
def test_the_largest_smaller_micro_batch_that_divides_is_named(
    largest: int, fitting: int, monkeypatch: pytest.MonkeyPatch
):
    found = sentence(monkeypatch, largest, GPU)
    assert found == (
        "rank 3 ran out of memory on its 80 GB GPU with engine.micro_batch_size=8, and the estimate allows "
        f"{largest} (motionmae plan): set engine.micro_batch_size={fitting} or model.activation_checkpointing=full"
    )


def test_where_nothing_fits_memory_must_be_saved_otherwise(monkeypatch: pytest.MonkeyPatch):
    found = sentence(monkeypatch, 0, GPU)
    assert found.endswith("set model.activation_checkpointing=full or a higher engine.zero_stage")


def test_where_it_should_fit_others_take_the_memory(monkeypatch: pytest.MonkeyPatch):
    found = sentence(monkeypatch, 8, GPU)
    assert found.endswith(": nvidia-smi lists other processes; stop them, or set engine.micro_batch_size=6")
    found = sentence(monkeypatch, 9, CPU)
    assert "rank 1 ran out of memory on its 80 GB machine" in found
    assert found.endswith(": other ranks and processes share it; stop them, or set engine.micro_batch_size=6")
    one = {"engine.micro_batch_size": 1}
    assert sentence(monkeypatch, 9, CPU, **one).endswith("stop them, or set model.activation_checkpointing=full")


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("NCCL: Cuda failure 2 'out of memory'"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_lack_of_memory(error: Exception, explained: bool):
    expected = OutOfMemoryError if explained else type(error)
    with pytest.raises(expected) as caught, explain_out_of_memory(config(), CPU):
        raise error
    assert (caught.value is error) != explained


def test_nothing_is_said_if_memory_was_enough():
    with explain_out_of_memory(config(), CPU):
        pass


def test_the_memory_of_a_machine_is_that_of_proc():
    with open("/proc/meminfo") as file:  # noqa: PTH123
        kilobytes = int(file.readline().split()[1])
    assert out_of_memory._memory(torch.device("cpu")) == kilobytes * 1024

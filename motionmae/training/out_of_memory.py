"""Errors for lack of memory on the device, explained by one sentence with a micro-batch that fits."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from motionmae.config import Config
from motionmae.config.schema import accumulation_steps
from motionmae.distributed.context import DistributedContext
from motionmae.engine.precision import resolve_precision
from motionmae.errors import UserError
from motionmae.planning.gpus import USABLE
from motionmae.planning.memory import largest_micro_batch

_LACK_OF_MEMORY = re.compile(  # in RuntimeErrors; torch's allocator for GPUs has an error of its own
    r"can't allocate memory|STATUS_ALLOC_FAILED|CUDA (error:|failure( \d+)?) '?out of memory", re.IGNORECASE
)


class OutOfMemoryError(UserError):
    """Lack of memory in a step or at the start. The name is that of torch's error, which monitoring counts."""


@contextmanager
def explain_out_of_memory(config: Config, rank: DistributedContext) -> Iterator[None]:
    """Raise an :class:`OutOfMemoryError` in place of torch's errors for lack of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _LACK_OF_MEMORY.search(str(error)):
            raise OutOfMemoryError(_sentence(config, rank)) from error
        raise


def _sentence(config: Config, rank: DistributedContext) -> str:
    size, videos = _memory(rank.device), config.engine.micro_batch_size
    on_gpu = rank.device.type == "cuda"
    estimated = config.updated(
        {
            "engine.precision": resolve_precision(config.engine.precision, rank.device),
            "launch.gpus_per_node": max(config.launch.gpus_per_node, 1) if on_gpu else 0,
        }
    )
    largest = largest_micro_batch(estimated, rank.world, USABLE * size)
    smaller = range(min(largest, videos - 1), 0, -1)
    fitting = next((number for number in smaller if _divides(config, rank.world, number)), 0)
    where = f"rank {rank.rank} ran out of memory on its {size / 1e9:.0f} GB {'GPU' if on_gpu else 'machine'}"
    setting = f"with engine.micro_batch_size={videos}, and the estimate allows {largest} (motionmae plan)"
    if largest >= videos:
        reason = "nvidia-smi lists other processes" if on_gpu else "other ranks and processes share it"
        remedy = f"engine.micro_batch_size={fitting}" if fitting else "model.activation_checkpointing=full"
        return f"{where} {setting}: {reason}; stop them, or set {remedy}"
    if fitting:
        return f"{where} {setting}: set engine.micro_batch_size={fitting} or model.activation_checkpointing=full"
    return f"{where} {setting}: set model.activation_checkpointing=full or a higher engine.zero_stage"


def _memory(device: torch.device) -> int:
    """Return the bytes of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _divides(config: Config, world: int, videos: int) -> bool:
    try:
        return accumulation_steps(config.updated({"engine.micro_batch_size": videos}), world) > 0
    except UserError:
        return False

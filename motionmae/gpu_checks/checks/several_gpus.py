"""Checks of several GPUs, in one process for each: NCCL's collectives, and reduction during the backward pass.

On several CPU ranks gloo takes NCCL's place.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from motionmae.config import Config
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.process_group import init_distributed
from motionmae.engine.deepspeed_engine import Engine
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, Batch, build_engine, load, make_batch, take_step
from motionmae.gpu_checks.measure import Kernel, busy_seconds, device_kernels, seconds_of, shared_seconds

_ELEMENTS = {True: 64_000_000, False: 100_000}  # of a message, on GPUs and on CPU ranks
_STEPS = 4
_WEIGHT_ERROR = 1e-6


def check_nccl(setting: Setting) -> Figures:
    """Reduce, gather and broadcast between all ranks, and measure the bandwidth of a reduction."""
    rank = init_distributed(load(TINY, setting).engine)
    figures: Figures = {"ranks": rank.world, "backend": dist.get_backend()}
    expected = rank.world * (rank.world + 1) / 2
    for dtype in (torch.float32, torch.bfloat16):
        block = torch.full((_ELEMENTS[setting.on_gpu],), rank.rank + 1.0, dtype=dtype, device=rank.device)
        dist.all_reduce(block)
        right = bool((block == expected).all())
        require(all(gather_objects(right)), f"an all-reduce in {dtype} gives a wrong sum", figures)
        seconds = seconds_of(lambda: dist.all_reduce(block), 5, rank.device)  # noqa: B023 - called at once
        # a ring sends 2 (N - 1) / N of the message over each link
        sent = 2 * (rank.world - 1) / rank.world * block.nbytes
        figures[f"gb_per_s_{str(dtype).removeprefix('torch.')}"] = sent / seconds / 1e9
    require(_gathers(rank), "an all-gather or a broadcast gives wrong values", figures)
    return figures


def _gathers(rank: DistributedContext) -> bool:
    own = torch.full((1000,), float(rank.rank), device=rank.device)
    parts = [torch.empty_like(own) for _ in range(rank.world)]
    dist.all_gather(parts, own)
    dist.broadcast(own, src=0)
    right = all(bool((part == number).all()) for number, part in enumerate(parts)) and not own.any()
    return all(gather_objects(right))


def check_overlap(setting: Setting) -> Figures:
    """Train at ZeRO 1 with and without overlap_comm: equal weights, and how much of the reduction is hidden."""
    small = setting.quick or not setting.on_gpu
    fixed = ["engine.deterministic=true"]  # so that only the overlap can make a difference
    config = load(TINY if small else "vitb_k400", setting, *fixed, *([] if small else ["engine.micro_batch_size=8"]))
    rank = init_distributed(config.engine)
    config = config.updated({"optim.global_batch_size": config.engine.micro_batch_size * rank.world})
    figures: Figures = {"ranks": rank.world}
    ends = {}
    for overlaps in (False, True):
        losses, ends[overlaps], hidden = _train(config.updated({"engine.overlap_comm": overlaps}), rank)
        figures[f"overlap_comm={overlaps}"] = {"losses": losses, "hidden_share": hidden}
    error = float(torch.stack([(ends[True][key] - ends[False][key]).abs().max() for key in ends[True]]).max())
    figures["weight_error"] = error
    require(all(gather_objects(error <= _WEIGHT_ERROR)), f"overlap_comm changes the weights by {error:.2g}", figures)
    return figures


def _train(config: Config, rank: DistributedContext) -> tuple[list[float], dict[str, Tensor], float | None]:
    """Take some steps; return losses, final weights, and the share of the reduction that computing hides."""
    engine = build_engine(config, stage=1)
    batches = [make_batch(config, rank.rank + rank.world * number, rank.device) for number in range(_STEPS)]
    losses = [float(take_step(engine, batch)) for batch in batches]
    weights = {name: p.detach().float().cpu().clone() for name, p in engine.parameters.items()}
    hidden = _hidden_share(engine, batches[0]) if rank.device.type == "cuda" else None
    engine.close()
    return losses, weights, hidden


def _hidden_share(engine: Engine, batch: Batch) -> float | None:
    """Return the share of NCCL's time in which other kernels run; None if the profiler sees no kernels."""

    def step() -> None:
        gather_objects(None)  # the profiler starts at another time on each rank, which NCCL's kernels would wait out
        take_step(engine, batch)

    kernels = device_kernels(step)
    messages: list[Kernel] = [kernel for kernel in kernels if "nccl" in kernel.name.lower()]
    others = [kernel for kernel in kernels if "nccl" not in kernel.name.lower()]
    return shared_seconds(messages, others) / busy_seconds(messages) if messages else None

"""Checks of the speed of a training step, and of its memory against the plan."""

import time
from functools import partial

import torch

from motionmae.config import Config
from motionmae.gpu_checks.check import CheckError, Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, build_engine, device_of, load, make_batch, take_step
from motionmae.gpu_checks.measure import (
    busy_seconds,
    device_kernels,
    is_attention,
    longest,
    seconds_of,
)
from motionmae.planning.flops import step_flops
from motionmae.planning.gpus import USABLE, peak_of_device
from motionmae.planning.memory import largest_micro_batch, predict_memory

_SECONDS, _QUICK_SECONDS = 4.0, 1.0  # duration of the measurement
_MOST_STEPS = 50
_WARM_UP = 3
_PROFILED = 2  # steps under the profiler
_TOLERANCE = 0.1  # of the plan's memory
_ROUNDING = 0.1e9  # bytes of small tensors and of the allocator's rounding, which weigh in a small model


def check_tiny(setting: Setting) -> Figures:
    return measure(load(TINY, setting), setting)


def check_vitb(setting: Setting) -> Figures:
    return measure(load("vitb_k400", setting), setting)


def check_vitl(setting: Setting) -> Figures:
    return measure(load("vitl_k400", setting), setting)


def check_vith(setting: Setting) -> Figures:
    return measure(load("vith_k400", setting, "model.activation_checkpointing=none"), setting)


def check_vitb_compiled(setting: Setting) -> Figures:
    return measure(load("vitb_k400", setting, "engine.compile=true"), setting)


def check_vitl_compiled(setting: Setting) -> Figures:
    return measure(load("vitl_k400", setting, "engine.compile=true"), setting)


def measure(config: Config, setting: Setting) -> Figures:
    """Measure steps of a run on one rank, whose micro-batch lies on the device."""
    device = device_of(setting)
    held = torch.cuda.memory_allocated() if setting.on_gpu else 0  # by earlier checks of this process
    if setting.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        config = fitting(config, torch.cuda.get_device_properties(0).total_memory)
    begin = time.perf_counter()
    engine, batch = build_engine(config), make_batch(config, 0, device)
    upcoming = make_batch(config, 1, device)  # as in a run, the next micro-batch is on the device already
    built = time.perf_counter() - begin
    step = partial(take_step, engine, batch)
    first = seconds_of(step, 1, device)
    estimate = seconds_of(step, _WARM_UP, device)
    steps = (_QUICK_SECONDS if setting.quick else _SECONDS) / estimate
    seconds = seconds_of(step, max(3, min(_MOST_STEPS, round(steps))), device)
    clips = len(batch.clips)
    figures: Figures = {
        "model": config.model.size,
        "compiled": config.engine.compile,
        "torch": torch.__version__,
        "precision": engine.precision,
        "micro_batch_size": config.engine.micro_batch_size,
        "ms": 1e3 * seconds,
        "clips_per_second": clips / seconds,
        "build_s": built,
        "first_step_s": first,
        "tflop_per_s": step_flops(config).model * clips / seconds / 1e12,
    }
    if not setting.on_gpu:
        engine.close()
        return figures | {"not_run": ["MFU, busy share, kernels, and memory against the plan"]}
    del upcoming
    return _with_gpu_figures(figures, config, held, partial(_profile, step, seconds))


def fitting(config: Config, memory: float) -> Config:
    """Return ``config`` with a smaller micro-batch if this GPU's memory needs one."""
    largest = largest_micro_batch(config, 1, USABLE * memory)
    if largest == 0:
        raise CheckError(f"no micro-batch of {config.model.size} fits this GPU", {})
    size = min(config.engine.micro_batch_size, largest)
    return config.updated({"engine.micro_batch_size": size, "optim.global_batch_size": size})


def _with_gpu_figures(figures: Figures, config: Config, held: int, profiled: "partial[Figures]") -> Figures:
    """Add device, MFU, memory beside the ``held`` bytes, and the profile; fail if the memory differs from the plan."""
    name, planned = torch.cuda.get_device_name(0), predict_memory(config, 1).peak
    used, reserved = torch.cuda.max_memory_allocated() - held, torch.cuda.max_memory_reserved()
    peak = peak_of_device(name)
    figures |= {
        "device": name,
        "mfu": figures["tflop_per_s"] / peak if peak else None,
        "peak_tflops": peak,
        "used_gb": used / 1e9,
        "planned_gb": planned / 1e9,
        "reserved_gb": reserved / 1e9,
        "gpu_gb": torch.cuda.get_device_properties(0).total_memory / 1e9,
        **profiled(),
    }
    as_planned = config.engine.compile or abs(used - planned) < _TOLERANCE * planned + _ROUNDING
    require(as_planned, f"a step takes {used / 1e9:.2f} GB, the plan says {planned / 1e9:.2f} GB", figures)
    return figures


def _profile(step: "partial[torch.Tensor]", seconds: float) -> Figures:
    """Profile steps of ``seconds`` each: busy share, number of kernels, the longest, the share of attention."""

    def steps() -> None:
        for _ in range(_PROFILED):
            step()

    kernels = device_kernels(steps)
    total = sum(kernel.seconds for kernel in kernels)
    if not total:
        return {"not_run": ["busy share and kernels (the profiler sees none: is another profiler attached?)"]}
    attention = sum(kernel.seconds for kernel in kernels if is_attention(kernel.name))
    return {
        "busy_share": busy_seconds(kernels) / _PROFILED / seconds,
        "kernels_per_step": len(kernels) / _PROFILED,
        "attention_share": attention / total,
        "longest_ms": {name: ms / _PROFILED for name, ms in longest(kernels, 8).items()},
    }

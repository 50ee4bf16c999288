"""Check of a checkpoint: how long its copy stalls training, and that a restore gives back every bit."""

import shutil
import time
from typing import Any

import torch
from torch import Tensor

from motionmae.checkpointing import sharded
from motionmae.checkpointing.sharded import PinnedStagingBuffer
from motionmae.distributed.process_group import init_distributed
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine
from motionmae.engine.sharded_state import KINDS
from motionmae.gpu_checks.check import Figures, Setting, require
from motionmae.gpu_checks.fixtures import TINY, build_engine, load, take_steps
from motionmae.runs.checkpoint_store import CheckpointStore

_LOSS_ERROR = 1e-3  # of the next step after a restore; GPU kernels may add in another order


def check_checkpoint(setting: Setting) -> Figures:
    """Save and restore at ZeRO 0, 1 and 3."""
    figures = Figures()
    for stage in (0, 1, 3):
        figures[f"zero{stage}"] = measured = save_and_restore(setting, stage)
        unequal = measured["unequal"]
        require(not unequal, f"ZeRO {stage} restores other values of {', '.join(unequal[:3])}", figures)
        off = abs(measured["loss_after_restore"] / measured["loss"] - 1)
        require(off < _LOSS_ERROR, f"ZeRO {stage}: the step after the restore has another loss ({off:.2%})", figures)
    return figures


def save_and_restore(setting: Setting, stage: int) -> Figures:
    """Save twice (the first pins memory), train on, restore; compare state and next loss."""
    config = load(TINY, setting) if setting.quick else load("vitb_k400", setting, "engine.micro_batch_size=4")
    rank, engine = init_distributed(config.engine), build_engine(config, stage)
    take_steps(engine, config, range(2))
    buffer, stalls, seconds = PinnedStagingBuffer(pinned=setting.on_gpu), [], {}
    for step in (1, 2):
        begin = time.perf_counter()
        staged = sharded.stage(engine, rank, step, {"trainer": {}, "config": {}}, buffer)
        stalls.append(1e3 * (time.perf_counter() - begin))
    before = state_of(engine)
    folder = setting.folder / f"checkpoint_{stage}"
    begin = time.perf_counter()
    saved = sharded.write(staged, CheckpointStore(folder), rank)
    seconds["write_s"] = time.perf_counter() - begin
    (loss,) = take_steps(engine, config, range(50, 51))
    begin = time.perf_counter()
    sharded.restore(engine, rank, saved)
    seconds["restore_s"] = time.perf_counter() - begin
    after = state_of(engine)
    unequal = [name for name in before if not torch.equal(before[name], after[name])]
    (again,) = take_steps(engine, config, range(50, 51))
    engine.close()
    shutil.rmtree(folder)
    sizes: dict[str, Any] = {"gb": saved.bytes / 1e9, "gb_per_s_of_the_copy": saved.bytes / 1e6 / stalls[-1]}
    stall = {"first_stall_ms": stalls[0], "stall_ms": stalls[-1]}
    return {**sizes, **stall, **seconds, "unequal": unequal, "loss": loss, "loss_after_restore": again}


def state_of(engine: Engine) -> dict[str, Tensor]:
    """Return copies of all parameters and moments, on the CPU."""
    return {
        f"{name}.{kind}": sharded_state.read(engine, parameter, kind).detach().cpu().clone()
        for name, parameter in engine.parameters.items()
        for kind in KINDS
    }

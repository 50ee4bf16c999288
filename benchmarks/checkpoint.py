"""Duration of a checkpoint: `python -m benchmarks.checkpoint --config vitb_k400 --folder /scratch`.

The script builds a model with AdamW state, saves it several times to a temporary folder, and prints medians: the stall
(the copy to host memory, during which training waits), the whole save (also writing, flushing, hashing and committing
in the background), and the slowdown of matrix products during the write. Under torchrun or srun it measures the slowest
rank.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from benchmarks.script import add_config_options, build_parser, run_script, write_json
from motionmae.checkpointing.async_checkpointer import AsyncCheckpointer, SaveResult
from motionmae.config import WatchdogConfig, load_config
from motionmae.distributed.context import broadcast_object, gather_objects
from motionmae.distributed.process_group import distributed
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine import sharded_state
from motionmae.engine.deepspeed_engine import Engine
from motionmae.runs.checkpoint_manifest import Checkpoint
from motionmae.runs.checkpoint_store import CheckpointStore
from motionmae.runs.lease import acquire_lease
from motionmae.training.pretrain import Pretraining


def slowest(seconds: float) -> float:
    """Return the maximum over all ranks. All ranks must call this."""
    return max(gather_objects(seconds))


def step_seconds(matrix: torch.Tensor, until: Callable[[], bool]) -> float:
    """Return the median seconds of a step of matrix products, repeated until ``until()`` is true."""
    times: list[float] = []
    while not times or not until():
        start = time.perf_counter()
        for _ in range(4):
            matrix @ matrix
        times.append(time.perf_counter() - start)
    return median(times)


def check_written(engine: Engine, written: Checkpoint) -> None:
    """Check that the files hold exactly the weights and moments of the engine. All ranks must call this."""
    files = {name: entry.name for entry in written.files for name in entry.tensors if entry.name.startswith("model-")}
    for name, parameter in engine.parameters.items():
        for kind in sharded_state.KINDS:
            live = sharded_state.read(engine, parameter, kind)
            home, key = files[name], name
            if kind != "parameter":
                home, key = home.replace("model-", "optimizer-"), f"{name}.{kind}"
            with safe_open(written.folder / home, framework="pt") as file:
                assert torch.equal(file.get_tensor(key), live.detach().cpu()), (name, kind)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build a model, save it, and return the results."""
    config = load_config(arguments.config, ["launch.gpus_per_node=0", *arguments.overrides])
    with distributed(config.engine) as rank:
        folder = Path(broadcast_object(tempfile.mkdtemp(dir=arguments.folder) if rank.is_rank_zero else None))
        try:
            task = Pretraining(config)
            model = task.build_model(None, None)  # type: ignore[arg-type]
            engine = Engine(model, task.parameter_groups(model), config, rank)
            lease = broadcast_object(acquire_lease(folder) if rank.is_rank_zero else None)
            watchdog = Watchdog(WatchdogConfig(), folder / "stacks", print)
            checkpointer = AsyncCheckpointer(
                CheckpointStore(folder / "checkpoints"), rank, lease, config.checkpoint, watchdog
            )
            for number, state in enumerate(sharded_state.engine_states(engine).values()):  # distinct values
                for moment in sharded_state.MOMENTS:
                    torch.nn.init.normal_(state[moment], generator=torch.Generator(rank.device).manual_seed(number))
            matrix = torch.randn(1024, 1024, device=rank.device)
            end = time.perf_counter() + 2
            alone = step_seconds(matrix, lambda: time.perf_counter() > end)
            stalls, wholes, beside = [], [], []
            saved: SaveResult | None = None
            for step in range(1, arguments.saves + 2):
                checkpointer.start(engine, step, {}, time.perf_counter())
                beside.append(step_seconds(matrix, lambda: not checkpointer.is_writing))
                saved = checkpointer.wait()
                assert saved is not None
                assert saved.checkpoint is not None, saved.error
                stalls.append(slowest(saved.blocking))
                wholes.append(slowest(saved.seconds))
            assert saved is not None
            assert saved.checkpoint is not None
            size = saved.checkpoint.bytes
            check_written(engine, saved.checkpoint)
            engine.close()
            return {
                "config": config.name,
                "ranks": rank.world,
                "zero": engine.stage,
                "gigabytes": size / 1e9,
                "first_stall": stalls[0],
                "stall": median(stalls[1:]),
                "whole": median(wholes[1:]),
                "stall_share": median(stalls[1:]) / median(wholes[1:]),
                "step_alone": alone,
                "step_beside_write": median(beside[1:]),
                "first": rank.is_rank_zero,
            }
        finally:
            gather_objects(None)  # all ranks have finished writing
            if rank.is_rank_zero:
                shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = build_parser(__doc__)
    add_config_options(parser)
    parser.add_argument("--saves", type=int, default=5, help="number of saves after the first (default: 5)")
    parser.add_argument("--folder", type=Path, help="folder for the checkpoints (default: the temporary folder)")
    arguments = parser.parse_args()
    figures = measure(arguments)
    if not figures.pop("first"):
        return
    table = Table("figure", "value", title=f"{figures['config']}: {figures['gigabytes']:.2f} GB", title_justify="left")
    table.add_row("ranks, ZeRO stage", f"{figures['ranks']}, {figures['zero']}")
    table.add_row("stall of a save", f"{figures['stall']:.3f} s (the first: {figures['first_stall']:.3f} s)")
    table.add_row("whole save", f"{figures['whole']:.3f} s")
    table.add_row("stall / whole", f"{figures['stall_share']:.1%}")
    slowdown = figures["step_beside_write"] / figures["step_alone"]
    table.add_row("step during the write", f"{slowdown:.2f} x its normal duration")
    Console().print(table)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    run_script(main)

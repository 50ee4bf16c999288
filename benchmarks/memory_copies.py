"""Cost of a memory copy: `python -m benchmarks.memory_copies --config vitb_k400 engine.device=cpu`.

The benchmark takes pre-training steps on noise, in windows of equally many steps: without a copy, and with one at the
beginning of the window. The windows take turns. The difference of the windows' medians is what a copy costs, the stall
and the work of its thread beside the steps. It prints the shortest interval (`checkpoint.memory_every_steps`) at which
this cost is below 1 % of the steps. With `--one-machine`, every rank counts as a node of its own, so that its share is
also sent.
"""

import argparse
import math
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from benchmarks.peers.step import random_batch
from benchmarks.script import add_config_options, build_parser, run_script, write_json
from motionmae.checkpointing.memory_copies import MemoryCopies
from motionmae.config import WatchdogConfig, load_config
from motionmae.data.loader import Batch
from motionmae.distributed.context import broadcast_object, gather_objects
from motionmae.distributed.process_group import distributed
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.runs import memory_folder
from motionmae.runs.lease import acquire_lease
from motionmae.training.pretrain import Pretraining
from motionmae.training.task import Task


def take_steps(engine: Engine, task: Task, batch: Batch, steps: int) -> None:
    for _ in range(steps * engine.accumulation):
        engine.backward(task.forward(engine, batch)[0])
        engine.step()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time windows of steps with and without a copy, and return medians over the rounds."""
    config = load_config(arguments.config, ["launch.gpus_per_node=0", *arguments.overrides])
    with distributed(config.engine) as rank:
        folder = Path(broadcast_object(tempfile.mkdtemp(dir=memory_folder.ROOT) if rank.is_rank_zero else None))
        memory_folder.ROOT = folder / (f"node{rank.rank}" if arguments.one_machine else "node")
        memory_folder.ROOT.mkdir(parents=True, exist_ok=True)
        try:
            task = Pretraining(config)
            model = task.build_model(None, None)  # type: ignore[arg-type]
            engine = Engine(model, task.parameter_groups(model), config, rank)
            lease = broadcast_object(acquire_lease(folder) if rank.is_rank_zero else None)
            watchdog = Watchdog(WatchdogConfig(), folder / "stacks", print)
            copies = MemoryCopies(rank, folder / "run", lease, 1, watchdog, print)
            batch = random_batch(config, config.engine.micro_batch_size * config.data.repeated_sampling).to(rank.device)
            times: dict[bool, list[float]] = {False: [], True: []}
            stalls = []
            for number in range(2 * arguments.rounds + 2):
                copied = bool(number % 2)
                dist.barrier()
                began = time.perf_counter()
                if copied:
                    copies.start(engine, {}, number, number, None)
                    stalls.append(time.perf_counter() - began)
                take_steps(engine, task, batch, arguments.steps)
                copies.wait()
                times[copied].append(max(gather_objects(time.perf_counter() - began)))
            size = sum(share.bytes for share in copies.folder.shares())
            copies.discard()
            engine.close()
        finally:
            gather_objects(None)  # all ranks have finished writing
            if rank.is_rank_zero:
                shutil.rmtree(folder, ignore_errors=True)
        without, with_copy = (median(times[copied][1:]) for copied in (False, True))
        step, cost = without / arguments.steps, with_copy - without
        return {
            "config": config.name,
            "ranks": rank.world,
            "gigabytes_a_node": size / 1e9,
            "step": step,
            "stall": median(stalls[1:]),
            "cost": cost,
            "cost_in_steps": cost / step,
            "interval_for_1_percent": max(math.ceil(100 * cost / step), 1),
            "windows": {"without": times[False][1:], "with": times[True][1:]},
            "first": rank.is_rank_zero,
        }


def main() -> None:
    parser = build_parser(__doc__)
    add_config_options(parser)
    parser.add_argument("--steps", type=int, default=10, help="steps of a window (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="windows of each kind after the first (default: 5)")
    parser.add_argument("--one-machine", action="store_true", help="every rank counts as a node of its own")
    arguments = parser.parse_args()
    figures = measure(arguments)
    if not figures.pop("first"):
        return
    table = Table("figure", "value", title=f"{figures['config']}, {figures['ranks']} ranks", title_justify="left")
    table.add_row("copies on a node", f"{figures['gigabytes_a_node']:.3f} GB")
    table.add_row("step", f"{figures['step']:.3f} s")
    table.add_row("stall of a copy", f"{figures['stall']:.3f} s")
    table.add_row("cost of a copy", f"{figures['cost']:.3f} s, {figures['cost_in_steps']:.2f} steps")
    table.add_row("interval for 1 %", f"{figures['interval_for_1_percent']} steps")
    Console().print(table)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    run_script(main)

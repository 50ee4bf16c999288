"""Seconds per clip and model FLOPs utilisation (MFU) of a training step: `python -m benchmarks.step --size small`.

The benchmark times whole optimiser steps on clips of 16 x 224 x 224 in memory, with tube masks of 90 % and one or two
decoders of depth 4:

    motionmae   MotionMAE with frame and motion targets and two decoders: the real trainer on DeepSpeed, with metrics
    videomae    MotionMAE with target.kind=frame and one decoder: the same trainer
    plain       the model of `motionmae` in plain torch. The difference is the cost of engine and trainer
    hf          transformers' VideoMAEForPreTraining in plain torch
    official    VideoMAE's code in plain torch, from a checkout (--official DIR)

The contestants take turns, one step each. The table shows medians over the rounds. MFU is the number of operations of
the model (motionmae/planning/flops.py, without recomputation), divided by the time and by the machine's best rate for
square matrix products of the same number format in the same run. "CPU" is the processor time of all threads in the
fastest round, and the MFU next to it uses this time. It is more reliable on a busy machine, best with
OMP_NUM_THREADS=1.

Examples:
  python -m benchmarks.step --size small --dtype fp32 --batch 4 --official ~/VideoMAE --json step.json
  python -m benchmarks.step engine.compile=true --size base --dtype bf16 --only motionmae videomae
  python -m benchmarks.step mask.decoder_ratio=0.5 --size base --only motionmae videomae hf
  python -m benchmarks.step --size base --engine               # DeepSpeed at ZeRO 0 to 3, and plain torch
  python -m benchmarks.step --size small --ranks 2             # two ranks and one rank on the same cores
  python -m benchmarks.step --size base model.activation_checkpointing=full
"""

import argparse
import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.peers.step import InLoop, Phases, hugging_face, official, only_targets, ours, random_batch
from benchmarks.script import build_parser, run_script, write_json
from monitoring.exporter_process import monitoring_sinks
from motionmae.config import Config, load_config
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.devices import choose_device
from motionmae.distributed.process_group import distributed
from motionmae.files import output_file
from motionmae.planning.flops import step_flops
from motionmae.runs.events import Sink

GEMM_SIDES = (1024, 2048)
GEMMS = 12
SIZES = {"small": "vit_s", "base": "vit_b", "large": "vit_l", "huge": "vit_h"}
PEERS = ("hf", "official")


class Took(NamedTuple):
    """Duration of an action."""

    seconds: float
    processor: float  # processor seconds of all threads of the process


class Contestant(Protocol):
    """Model in training."""

    def step(self) -> Phases:
        """Take a step and return the seconds of its parts."""


def names(options: argparse.Namespace) -> dict[str, Config]:
    """Return the contestants, each with the config that gives its number of operations."""
    config, videomae = config_of(options), config_of(options, "target.kind=frame")
    if options.engine:
        stages = {f"zero{stage}": config_of(options, f"engine.zero_stage={stage}") for stage in range(4)}
        return {"plain": config} | stages
    theirs = videomae.updated({"mask.decoder_ratio": 0.0})  # the others predict all masked cubes
    found = {"motionmae": config, "videomae": videomae, "plain": config, "hf": theirs}
    if options.official:
        found["official"] = theirs
    if options.only and (unknown := set(options.only) - set(found)):
        sys.exit(
            f"unknown contestant --only {' '.join(sorted(unknown))}: choose from {', '.join(found)} "
            "(official needs --official DIR)"
        )
    return {name: config for name, config in found.items() if not options.only or name in options.only}


def contestant(
    name: str, config: Config, options: argparse.Namespace, rank: DistributedContext, sinks: list[Sink]
) -> Contestant:
    """Make a contestant of :func:`names`."""
    batch, bf16 = random_batch(config, options.batch), options.dtype == "bf16"
    if name == "plain":
        return ours(config, batch, rank.device, bf16)
    if name == "hf":
        return hugging_face(config, batch, rank.device, bf16)
    if name == "official":
        return official(options.official, config, batch, rank.device, bf16)
    return InLoop(config, batch, rank, sinks, stage=config.engine.zero_stage if options.engine else None)


@contextmanager
def process_of(name: str, config: Config) -> Iterator[tuple[DistributedContext, list[Sink]]]:
    """Set up the process of a contestant: like a run for our models, torch's defaults for the others.

    A run makes glibc keep freed memory. Without this setting, as here, the official code takes a
    quarter more time.
    """
    if name in PEERS:
        yield DistributedContext(0, 1, 0, choose_device(config.engine.device)), []
        return
    with distributed(config.engine) as rank, monitoring_sinks(config) as sinks:
        yield rank, sinks


def serve(name: str, config: Config, options: argparse.Namespace, parent: Connection) -> None:
    """Run one contestant in a separate process, which isolates memory and settings.

    Every message is answered with the parts of a step and its duration, until the parent closes the connection.
    """
    with process_of(name, config) as (rank, sinks):
        training = contestant(name, config, options, rank, sinks)
        targets = None if name in PEERS else only_targets(config, random_batch(config, options.batch), rank.device)
        with suppress(EOFError):
            while parent.recv():
                if rank.world > 1:
                    gather_objects(None)  # all ranks start the step together
                gc.collect()  # keeps garbage collection out of the step
                spent, took = timed(training.step, rank.device)
                if targets:
                    spent["targets"] = timed(targets, rank.device)[1].seconds
                    spent["forward"] -= spent["targets"]
                parent.send((spent, took))
        if isinstance(training, InLoop):
            training.close()


class Contest:
    """Contestants in separate processes, which step in turns."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._connections: dict[str, list[Connection]] = {}
        self.phases: dict[str, list[Phases]] = {}
        """Parts of each counted step on rank 0."""
        self.took: dict[str, list[Took]] = {}
        """Duration of each counted step on the slowest rank."""

    def add(self, name: str, config: Config, environment: dict[str, int | str], label: str = "") -> None:
        """Start the ranks of a contestant with ``environment``, which contains WORLD_SIZE."""
        context, label = get_context("spawn"), label or name
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._connections[label], self.phases[label], self.took[label] = [], [], []
        for rank in range(int(environment["WORLD_SIZE"])):
            place = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = environment | place
            connection, other = context.Pipe()
            with patch.dict(os.environ, {key: str(value) for key, value in variables.items()}):
                context.Process(target=serve, args=(name, config, self._options, other), daemon=True).start()
            other.close()  # an open copy would hide the end of the process
            self._connections[label].append(connection)

    def hold(self, between: Callable[[], None] = lambda: None) -> None:
        """Run all rounds, and call ``between`` after each."""
        for number in range(-self._options.warmup, self._options.rounds):
            for label, connections in self._connections.items():
                spent, took = self._step(label, connections)
                if number >= 0:
                    self.phases[label].append(spent)
                    self.took[label].append(took)
            between()

    @staticmethod
    def _step(label: str, connections: list[Connection]) -> tuple[Phases, Took]:
        for connection in connections:
            connection.send(True)
        try:
            answers = [connection.recv() for connection in connections]
        except EOFError:
            sys.exit(f"the contestant {label} failed: see the messages above")
        return answers[0][0], max(took for _, took in answers)


def config_of(options: argparse.Namespace, *changes: str, ranks: int = 1) -> Config:
    """Return the paper's K400 configuration with the requested size, batch and precision."""
    settings = [
        f"model.size={SIZES[options.size]}",
        f"engine.precision={options.dtype}",
        f"engine.micro_batch_size={options.batch}",
        f"optim.global_batch_size={options.batch * ranks}",
        "watchdog.step_seconds=0",  # the steps of other contestants lie between two steps
        "monitoring.linger_seconds=0",
        f"output_dir={options.runs}",
    ]
    return load_config("vitb_k400", [*settings, *changes, *options.overrides])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all contestants and return the figures by name."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    competing = names(options)
    device = choose_device(config_of(options).engine.device)
    contest, rates = Contest(options), list[Took]()
    for name, config in competing.items():
        contest.add(name, config, {"WORLD_SIZE": 1})
    contest.hold(between=lambda: rates.append(gemm_time(dtype, device)))
    peak, processor_peak = (1 / min(values) for values in zip(*rates, strict=True))
    per_clip = {name: median(took[0] for took in values) / options.batch for name, values in contest.took.items()}
    processor = {name: min(took[1] for took in values) / options.batch for name, values in contest.took.items()}
    flops = {name: step_flops(config).model for name, config in competing.items()}
    return {
        "size": options.size,
        "dtype": options.dtype,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "overrides": options.overrides,
        "rounds": options.rounds,
        "peak_gflops": peak / 1e9,
        "processor_peak_gflops": processor_peak / 1e9,
        "gflop_per_clip": {name: count / 1e9 for name, count in flops.items()},
        "seconds_per_clip": per_clip,
        "mfu": {name: flops[name] / per_clip[name] / peak for name in per_clip},
        "processor_seconds_per_clip": processor,
        "processor_mfu": {name: flops[name] / processor[name] / processor_peak for name in processor},
        "phases_per_clip": {
            name: {part: median(row[part] for row in rows) / options.batch for part in rows[0]}
            for name, rows in contest.phases.items()
        },
    }


def timed(action: Callable[[], Any], device: torch.device) -> tuple[Any, Took]:
    """Return the result of ``action``, and its duration until the device has finished."""
    begin, busy = time.perf_counter(), time.process_time()
    result = action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, Took(time.perf_counter() - begin, time.process_time() - busy)


def gemm_time(dtype: torch.dtype, device: torch.device) -> Took:
    """Return the shortest time per operation of square matrix products.

    Processor time is a mean over several products, because Linux updates the time of other threads only now and then.
    """
    found = []
    for side in GEMM_SIDES:
        matrix = torch.randn(side, side, device=device).to(dtype)

        def products(matrix: Tensor = matrix) -> float:
            return min(timed(lambda: matrix @ matrix, device)[1].seconds for _ in range(GEMMS))

        seconds, row = timed(products, device)
        found.append([value / (2 * side**3) for value in (seconds, row.processor / GEMMS)])
    return Took(*(min(values) for values in zip(*found, strict=True)))


def of_ranks(options: argparse.Namespace) -> dict[str, Any]:
    """Return the clips per second of `motionmae` on one rank and on several, with all cores divided evenly."""
    cores, contest = len(os.sched_getaffinity(0)), Contest(options)
    worlds = {str(world): world for world in (1, options.ranks)}
    for label, world in worlds.items():
        environment: dict[str, int | str] = {"WORLD_SIZE": world, "OMP_NUM_THREADS": max(cores // world, 1)}
        contest.add("motionmae", config_of(options, ranks=world), environment, label)
    contest.hold()
    rates = {
        label: worlds[label] * options.batch / median(took.seconds for took in found)
        for label, found in contest.took.items()
    }
    return {"clips_per_second": rates, "share": rates[str(options.ranks)] / rates["1"]}


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    parts = ["forward", "targets", "backward", "optimizer"]
    columns = ("", "s/clip", "MFU", "CPU", "MFU", *parts, "rest")
    table = Table(*columns, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.title = (
        f"{figures['size']}, {figures['dtype']}, {figures['batch']} clips, "
        f"{figures['threads']} threads; GEMM {figures['peak_gflops']:.0f} GFLOP/s"
    )
    for name, seconds in figures["seconds_per_clip"].items():
        spent = [figures["phases_per_clip"][name].get(part) for part in parts]
        rest = seconds - sum(part or 0 for part in spent)
        cells = [f"{part:.3f}" if part is not None else "" for part in (*spent, rest)]
        shares = (f"{figures[kind][name]:.2f}" for kind in ("mfu", "processor_mfu"))
        took = (f"{seconds:.3f}", next(shares), f"{figures['processor_seconds_per_clip'][name]:.3f}", next(shares))
        table.add_row(name, *took, *cells)
    Console().print(table)


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--official", type=Path, metavar="DIR", help="a checkout of github.com/MCG-NJU/VideoMAE")
    parser.add_argument("--size", choices=SIZES, default="small", help="ViT-S, B, L or H (default: small)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast (default: fp32)")
    parser.add_argument("--batch", type=int, default=4, help="clips per step and rank (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="counted steps of each contestant (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the counted ones (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants to run (default: all)")
    parser.add_argument("--engine", action="store_true", help="compare ZeRO 0 to 3 on one rank with plain torch")
    parser.add_argument("--ranks", type=int, default=1, help="ranks to compare with one rank on the same cores")
    parser.add_argument("--json", type=output_file, help="file for the figures")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config of MotionMAE")
    options = parser.parse_args()
    # the contestants are killed at the end and cannot remove this folder
    with TemporaryDirectory(ignore_cleanup_errors=True) as options.runs:
        figures = of_ranks(options) if options.ranks > 1 else measure(options)
    if options.ranks > 1:
        print(f"{options.ranks} ranks reach {figures['share']:.2f} of one rank: {figures['clips_per_second']} clips/s")
    else:
        show(figures)
    write_json(options.json, figures)


if __name__ == "__main__":
    run_script(main)

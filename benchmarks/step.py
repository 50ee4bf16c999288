"""Seconds a clip and model FLOPs utilisation (MFU) of a training step: `python benchmarks/step.py --size small`.

Times whole optimiser steps on clips of 16 x 224 x 224 that lie in memory, tube masks of 90 %, two or one decoders of
depth 4:

    motionmae   ours, frame and motion, two decoders: the real loop on DeepSpeed, a row of metrics in every step
    videomae    ours with target.kind=frame, one decoder: the same loop
    plain       the model of `motionmae` in plain torch: what is between the two is the engine's and the loop's
    hf          transformers' VideoMAEForPreTraining in plain torch
    official    VideoMAE's own code in plain torch, from a checkout (--official DIR)

Contestants take turns, a step each, and medians over the rounds are printed. MFU is the operations that the model needs
(motionmae/planning/flops.py; recomputed ones do not count) over the time and the best rate at which this machine
multiplied square matrices of the same number format in the same run. "CPU" are seconds of processors, of all threads,
in the round that took least, and MFU by these: on a machine that others keep busy they say more, best with
OMP_NUM_THREADS=1.

Examples:
  python benchmarks/step.py --size small --dtype fp32 --batch 4 --official ~/VideoMAE --json step.json
  python benchmarks/step.py engine.compile=true --size base --dtype bf16 --only motionmae videomae
  python benchmarks/step.py mask.decoder_ratio=0.5 --size base --only motionmae videomae hf
  python benchmarks/step.py --size base --engine               # DeepSpeed at ZeRO 0 to 3 against plain torch
  python benchmarks/step.py --size small --ranks 2             # two ranks against one, on the same cores
  python benchmarks/step.py --size base model.activation_checkpointing=full
"""

import argparse
import gc
import json
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

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

import torch
from rich.console import Console
from rich.table import Table
from step_peers import InLoop, Phases, hugging_face, official, only_targets, ours, random_batch
from torch import Tensor

from benchmarks.entry import run_script
from monitoring.exporter_process import monitoring_sinks
from motionmae.config import Config, load_config
from motionmae.distributed.context import DistributedContext, choose_device, gather_objects
from motionmae.distributed.process_group import distributed
from motionmae.files import output_file
from motionmae.planning.flops import step_flops
from motionmae.runs.events import Sink

GEMM_SIDES = (1024, 2048)
GEMMS = 12
SIZES = {"small": "vit_s", "base": "vit_b", "large": "vit_l", "huge": "vit_h"}
PEERS = ("hf", "official")


class Took(NamedTuple):
    """What something took."""

    seconds: float
    processor: float
    """Seconds of processors, of all threads of the process."""


class Contestant(Protocol):
    """Something that trains."""

    def step(self) -> Phases:
        """Take a step; the seconds of its parts."""


def names(options: argparse.Namespace) -> dict[str, Config]:
    """Who competes, with the config by which its operations are counted."""
    config, videomae = config_of(options), config_of(options, "target.kind=frame")
    if options.engine:
        return {"plain": config} | {
            f"zero{stage}": config_of(options, f"engine.zero_stage={stage}") for stage in range(4)
        }
    theirs = videomae.updated({"mask.decoder_ratio": 0.0})  # they rebuild all that is hidden
    found = {"motionmae": config, "videomae": videomae, "plain": config, "hf": theirs}
    if options.official:
        found["official"] = theirs
    if options.only and (unknown := set(options.only) - set(found)):
        sys.exit(f"--only {' '.join(sorted(unknown))}: there are {', '.join(found)} (official with --official DIR)")
    return {name: config for name, config in found.items() if not options.only or name in options.only}


def contestant(
    name: str, config: Config, options: argparse.Namespace, rank: DistributedContext, sinks: list[Sink]
) -> Contestant:
    """Make one of :func:`names`."""
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
    """The process of a contestant: ours as a run prepares it, a peer's as torch leaves it, as its users train.

    Part of preparing is to have glibc keep freed memory, without which the official code takes a quarter more time.
    """
    if name in PEERS:
        yield DistributedContext(0, 1, 0, choose_device(config.engine.device)), []
        return
    with distributed(config.engine) as rank, monitoring_sinks(config) as sinks:
        yield rank, sinks


def serve(name: str, config: Config, options: argparse.Namespace, parent: Connection) -> None:
    """Be one contestant in a process of its own, so that none lives with another's memory or settings.

    Answers every message with a step's parts and what it took, until the other end is closed.
    """
    with process_of(name, config) as (rank, sinks):
        training = contestant(name, config, options, rank, sinks)
        targets = None if name in PEERS else only_targets(config, random_batch(config, options.batch), rank.device)
        with suppress(EOFError):
            while parent.recv():
                if rank.world > 1:
                    gather_objects(None)  # ranks begin together
                gc.collect()  # rubbish of this process is none of the step's
                spent, took = timed(training.step, rank.device)
                if targets:
                    spent["targets"] = timed(targets, rank.device)[1].seconds
                    spent["forward"] -= spent["targets"]
                parent.send((spent, took))
        if isinstance(training, InLoop):
            training.close()


class Contest:
    """Contestants in processes of their own that step when told to, one contestant after the other."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._talks: dict[str, list[Connection]] = {}
        self.phases: dict[str, list[Phases]] = {}
        """Seconds of rank 0's parts of each step that counts."""
        self.took: dict[str, list[Took]] = {}
        """What each step that counts took, on the slowest rank."""

    def add(self, name: str, config: Config, place: dict[str, int | str], label: str = "") -> None:
        """Start one as the ranks that ``place`` describes: WORLD_SIZE and what else they find in their environment."""
        context, label = get_context("spawn"), label or name
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._talks[label], self.phases[label], self.took[label] = [], [], []
        for rank in range(int(place["WORLD_SIZE"])):
            mine = place | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            talk, other = context.Pipe()
            with patch.dict(os.environ, {key: str(value) for key, value in mine.items()}):
                context.Process(target=serve, args=(name, config, self._options, other), daemon=True).start()
            other.close()  # or its end would not be noticed here
            self._talks[label].append(talk)

    def hold(self, between: Callable[[], None] = lambda: None) -> None:
        """Have the rounds stepped, and ``between`` called after each."""
        for number in range(-self._options.warmup, self._options.rounds):
            for label, talks in self._talks.items():
                spent, took = self._step(label, talks)
                if number >= 0:
                    self.phases[label].append(spent)
                    self.took[label].append(took)
            between()

    @staticmethod
    def _step(label: str, talks: list[Connection]) -> tuple[Phases, Took]:
        for talk in talks:
            talk.send(True)
        try:
            answers = [talk.recv() for talk in talks]
        except EOFError:
            sys.exit(f"{label} failed, see above")
        return answers[0][0], max(took for _, took in answers)


def config_of(options: argparse.Namespace, *changes: str, ranks: int = 1) -> Config:
    """The paper's K400 configuration at the size, batch and precision asked for."""
    asked = [
        f"model.size={SIZES[options.size]}",
        f"engine.precision={options.dtype}",
        f"engine.micro_batch_size={options.batch}",
        f"optim.global_batch_size={options.batch * ranks}",
        "watchdog.step_seconds=0",  # others' steps lie between two of ours
        "monitoring.linger_seconds=0",
        f"output_dir={options.runs}",
    ]
    return load_config("vitb_k400", [*asked, *changes, *options.overrides])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Have the contestants step in turns; the figures by name."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    competing = names(options)
    device = choose_device(config_of(options).engine.device)
    contest, rates = Contest(options), list[Took]()
    for name, config in competing.items():
        contest.add(name, config, {"WORLD_SIZE": 1})
    contest.hold(between=lambda: rates.append(gemm_time(dtype, device)))
    peak, processor_peak = (1 / min(values) for values in zip(*rates, strict=True))
    per_clip, processor = (
        {name: typical(took[kind] for took in values) / options.batch for name, values in contest.took.items()}
        for kind, typical in enumerate((median, min))
    )
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
    """What ``action`` returns, and what it takes until the device is done."""
    begin, busy = time.perf_counter(), time.process_time()
    result = action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, Took(time.perf_counter() - begin, time.process_time() - busy)


def gemm_time(dtype: torch.dtype, device: torch.device) -> Took:
    """The least that an operation of a product of square matrices takes.

    Processors' time is the mean of products in a row: Linux brings another thread's up to date only now and then, and
    one product is over before.
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
    """Clips a second of `motionmae` as one rank and as several, each time with all cores shared out evenly."""
    cores, contest = len(os.sched_getaffinity(0)), Contest(options)
    worlds = {str(world): world for world in (1, options.ranks)}
    for label, world in worlds.items():
        place: dict[str, int | str] = {"WORLD_SIZE": world, "OMP_NUM_THREADS": max(cores // world, 1)}
        contest.add("motionmae", config_of(options, ranks=world), place, label)
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
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="a checkout of github.com/MCG-NJU/VideoMAE")
    parser.add_argument("--size", choices=SIZES, default="small", help="ViT-S, B, L or H (default: small)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast (default: fp32)")
    parser.add_argument("--batch", type=int, default=4, help="clips of a step and rank (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each before (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="leave the others out")
    parser.add_argument(
        "--engine", action="store_true", help="compare ZeRO 0 to 3, which one rank would not use, with plain torch"
    )
    parser.add_argument("--ranks", type=int, default=1, help="compare so many ranks with one, on the same cores")
    parser.add_argument("--json", type=output_file, help="write the figures there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config of ours")
    options = parser.parse_args()
    # Made here, since the contestants are killed at the end: nothing of theirs is to be taken for the run of this name.
    with TemporaryDirectory(ignore_cleanup_errors=True) as options.runs:
        figures = of_ranks(options) if options.ranks > 1 else measure(options)
    if options.ranks > 1:
        print(
            f"{options.ranks} ranks train at {figures['share']:.2f} of one rank: {figures['clips_per_second']} clips/s"
        )
    else:
        show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(run_script(main))

"""Seconds a clip and model FLOPs utilisation (MFU) of a training step: `python benchmarks/step.py --size small`.

Times whole optimiser steps on clips of 16 x 224 x 224 that lie in memory, tube masks of 90 %, two or one decoders of
depth 4:

    motionmae   ours, frame and motion, two decoders: the real loop on DeepSpeed, a row of metrics in every step
    videomae    ours with target.kind=frame, one decoder: the same loop
    plain       the model of `motionmae` in plain torch: what is between the two is the engine's and the loop's
    hf          transformers' VideoMAEForPreTraining in plain torch
    official    VideoMAE's own code in plain torch, from a checkout (--official DIR)

Contestants take turns, a step each, and medians over the rounds are printed. MFU is the operations that the model needs
(motionmae/models/counting.py; recomputed ones do not count) over the time and the best rate at which this machine
multiplied square matrices of the same number format in the same run.

Examples:
  python benchmarks/step.py --size small --dtype fp32 --batch 4 --official ~/VideoMAE --json step.json
  python benchmarks/step.py --size base --dtype bf16 --only motionmae videomae engine.compile=true
  python benchmarks/step.py --size base --engine               # DeepSpeed at ZeRO 0 to 3 against plain torch
  python benchmarks/step.py --size small --ranks 2             # two ranks against one, on the same cores
  python benchmarks/step.py --size base model.activation_checkpointing=full
"""

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Protocol

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

import torch
from rich.console import Console
from rich.table import Table
from step_peers import InLoop, Phases, hugging_face, official, only_targets, ours, random_batch

from monitoring.session import monitored
from motionmae.config import Config, load_config
from motionmae.models.counting import step_flops
from motionmae.training.distributed import Rank, choose_device, distributed, gather_objects
from motionmae.training.events import Sink

GEMM_SIDES = (1024, 2048)
SIZES = {"small": "vit_s", "base": "vit_b", "large": "vit_l", "huge": "vit_h"}
TRIALS = 3
PEERS = ("hf", "official")


class Contestant(Protocol):
    """Something that trains."""

    def step(self) -> Phases:
        """Take a step; the seconds of its parts."""


def names(options: argparse.Namespace) -> dict[str, Config]:
    """Who competes, with the config by which its operations are counted."""
    config, videomae = config_of(options), config_of(options, "target.kind=frame")
    if options.engine:
        return {"plain": config} | {f"zero{stage}": config_of(options, f"engine.zero={stage}") for stage in range(4)}
    found = {"motionmae": config, "videomae": videomae, "plain": config, "hf": videomae}
    if options.official:
        found["official"] = videomae
    if options.only and (unknown := set(options.only) - set(found)):
        sys.exit(f"--only {' '.join(sorted(unknown))}: there are {', '.join(found)} (official with --official DIR)")
    return {name: config for name, config in found.items() if not options.only or name in options.only}


def contestant(name: str, config: Config, options: argparse.Namespace, rank: Rank, sinks: list[Sink]) -> Contestant:
    """Make one of :func:`names`."""
    batch, bf16 = random_batch(config, options.batch), options.dtype == "bf16"
    if name == "plain":
        return ours(config, batch, rank.device, bf16)
    if name == "hf":
        return hugging_face(config, batch, rank.device, bf16)
    if name == "official":
        return official(options.official, config, batch, rank.device, bf16)
    return InLoop(config, batch, rank, sinks)


def serve(name: str, config: Config, options: argparse.Namespace, parent: Connection) -> None:
    """Be one contestant in a process of its own, so that none lives with another's memory or settings.

    Answers every message with a step's parts and its seconds, until the other end is closed.
    """
    with distributed(config.engine) as rank, monitored(config) as sinks:
        training = contestant(name, config, options, rank, sinks)
        targets = None if name in PEERS else only_targets(config, random_batch(config, options.batch), rank.device)
        with suppress(EOFError):
            while parent.recv():
                gather_objects(None)  # ranks begin together
                spent, seconds = timed(training.step, rank.device)
                if targets:
                    spent["targets"] = timed(targets, rank.device)[1]
                    spent["forward"] -= spent["targets"]
                parent.send((spent, seconds))
        if isinstance(training, InLoop):
            training.close()


def config_of(options: argparse.Namespace, *changes: str) -> Config:
    """The paper's K400 configuration at the size, batch and precision asked for."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    asked = [
        f"model.size={SIZES[options.size]}",
        f"engine.precision={options.dtype}",
        f"engine.micro_batch={options.batch}",
        f"optim.batch={options.batch * world}",
        "watchdog.step_seconds=0",  # others' steps lie between two of ours
        "monitoring.linger_seconds=0",
    ]
    return load_config("vitb_k400", [*asked, *changes, *options.overrides])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Have the steps taken in turns; the figures by name."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    competing, world = names(options), int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(config_of(options).engine.device)
    context = get_context("spawn")
    talks: dict[str, Connection] = {}
    for name, config in competing.items():
        talks[name], other = context.Pipe()
        context.Process(target=serve, args=(name, config, options, other), daemon=True).start()
        other.close()  # or its end would not be noticed here
    seconds: dict[str, list[float]] = {name: [] for name in competing}
    phases: dict[str, list[Phases]] = {name: [] for name in competing}
    peak = 0.0
    for number in range(-options.warmup, options.rounds):
        for name, talk in talks.items():
            talk.send(True)
            spent, took = talk.recv()
            if number >= 0:
                seconds[name].append(took)
                phases[name].append(spent)
        peak = max(peak, gemm_rate(dtype, device))
    clips = options.batch * world
    per_clip = {name: median(values) / clips for name, values in seconds.items()}
    return {
        "size": options.size,
        "dtype": options.dtype,
        "batch": options.batch,
        "ranks": world,
        "threads": torch.get_num_threads(),
        "overrides": options.overrides,
        "rounds": options.rounds,
        "peak_gflops": peak / 1e9,
        "gflop_per_clip": {name: step_flops(config).model / 1e9 for name, config in competing.items()},
        "seconds_per_clip": per_clip,
        "mfu": {name: step_flops(competing[name]).model / per_clip[name] / peak / world for name in per_clip},
        "phases_per_clip": {
            name: {part: median(row[part] for row in rows) / clips for part in rows[0]} for name, rows in phases.items()
        },
    }


def timed(action: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What ``action`` returns, and its seconds until the device is done; rubbish is collected before."""
    gc.collect()
    begin = time.perf_counter()
    result = action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - begin


def gemm_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the best product of square matrices."""
    best = 0.0
    for side in GEMM_SIDES:
        matrix = torch.randn(side, side, device=device).to(dtype)
        best = max(best, *(2 * side**3 / timed(lambda: matrix @ matrix, device)[1] for _ in range(3)))  # noqa: B023
    return best


def of_ranks(options: argparse.Namespace) -> dict[str, Any]:
    """Clips a second of one rank and of several, each time with all cores shared out evenly; they take turns."""
    cores = len(os.sched_getaffinity(0))
    rates: dict[int, list[float]] = {1: [], options.ranks: []}
    for _ in range(TRIALS):
        for world, found in rates.items():
            found.append(1 / run_ranks(options, world, cores // world)["seconds_per_clip"]["motionmae"])
    one, several = (median(found) for found in rates.values())
    return {"clips_per_second": {str(world): median(found) for world, found in rates.items()}, "share": several / one}


def run_ranks(options: argparse.Namespace, world: int, threads: int) -> dict[str, Any]:
    """Run this program as ``world`` ranks that train `motionmae`; the figures of their first."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as probe:
        file, port = Path(folder) / "figures.json", probe.getsockname()[1]
        probe.close()
        command = [sys.executable, __file__, "--only", "motionmae", "--json", file]
        for key in ("size", "dtype", "batch", "rounds", "warmup"):
            command += [f"--{key}", getattr(options, key)]
        place = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
        ranks = [
            subprocess.Popen(
                [str(word) for word in (*command, *options.overrides)],
                env=os.environ | {key: str(value) for key, value in (place | {"RANK": r, "LOCAL_RANK": r}).items()},
                stdout=subprocess.DEVNULL,
            )
            for r in range(world)
        ]
        statuses = [rank.wait() for rank in ranks]
        if any(statuses):
            sys.exit(f"one of {world} ranks failed, see above")
        return json.loads(file.read_text())


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    parts = ["forward", "targets", "backward", "optimizer"]
    table = Table("", "s / clip", "MFU", *parts, "rest", title_justify="left")
    table.title = (
        f"{figures['size']}, {figures['dtype']}, {figures['ranks']} x {figures['batch']} clips, "
        f"{figures['threads']} threads; GEMM {figures['peak_gflops']:.0f} GFLOP/s"
    )
    for name, seconds in figures["seconds_per_clip"].items():
        spent = [figures["phases_per_clip"][name].get(part) for part in parts]
        rest = seconds - sum(part or 0 for part in spent)
        cells = [f"{part:.3f}" if part is not None else "" for part in (*spent, rest)]
        table.add_row(name, f"{seconds:.3f}", f"{figures['mfu'][name]:.2f}", *cells)
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
    parser.add_argument("--engine", action="store_true", help="compare ZeRO stages 0 to 3 with plain torch")
    parser.add_argument("--ranks", type=int, default=1, help="compare so many ranks with one, on the same cores")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config of ours")
    options = parser.parse_args()
    if options.ranks > 1:
        figures = of_ranks(options)
        print(
            f"{options.ranks} ranks train at {figures['share']:.2f} of one rank: {figures['clips_per_second']} clips/s"
        )
    else:
        figures = measure(options)
        if os.environ.get("RANK", "0") != "0":
            return
        show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

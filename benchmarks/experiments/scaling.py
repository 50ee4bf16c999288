"""Scaling limits of a run: a training step on 1 to 1,024 GPUs by the model of benchmarks/experiments/network.py.

Examples (SCALING stands for `python -m benchmarks.experiments.scaling`)::

  SCALING --config vitl_k400 --gpu a100-80 --mfu 0.4 --picture docs/pictures/scaling.png
  SCALING --config vitb_k400 --gpu h100-80 --seconds-per-clip 0.006 --outside-gbs 50 --overlap 0.8
  SCALING --check --json check.json     # compare the model with 1, 2 and 4 processes on this machine

Weak scaling: every GPU keeps its micro-batch and the global batch grows. Strong scaling: the global batch stays and
each GPU gets fewer clips. Efficiency is the speed per GPU relative to a single GPU. The duration of a step on one GPU
comes from --seconds-per-clip if it was measured, else from the counted FLOPs and --mfu.

--check trains with DeepSpeed on gloo. It measures a step of one process, the slowdown of computation beside a second
process, and the latency and bandwidth of gloo's collectives between two processes. From these it predicts the steps of
1, 2 and 4 processes. If processes share cores, everything takes processes / cores times longer.
"""

import argparse
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from benchmarks.experiments.network import Link, Network, Work, step_parts
from benchmarks.script import build_parser, run_ranks, run_script, write_json
from motionmae.config import Config, load_config
from motionmae.config.training import BUCKET
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.process_group import distributed
from motionmae.engine.deepspeed_engine import Engine, import_deepspeed
from motionmae.errors import UserError
from motionmae.files import output_file
from motionmae.models.motionmae import build_motionmae
from motionmae.models.targets import output_sizes
from motionmae.planning.flops import count_parameters, decoder_trunks, step_flops
from motionmae.planning.gpus import DEFAULT, find_gpu
from motionmae.training.pretrain import Pretraining

SMALL = ["model.size=vit_s", "clip.size=112", "engine.micro_batch_size=4", "engine.precision=fp32"]
"""Default config of --check: a quarter of a second of computation for 105 MB of gradients."""
WORLDS = (1, 2, 4)
STAGES = (0, 1, 2, 3)
GPUS = tuple(2**power for power in range(11))
LIMITS = (0.9, 0.5)
MESSAGES = (4_096, 16_000_000)
"""Message sizes in bytes to which latency and bandwidth of a link are fitted."""


def gpu_work(config: Config, seconds_per_clip: float) -> Work:
    """Return the work of a micro-batch on a GPU: one third forward, two thirds backward, including AdamW."""
    seconds = seconds_per_clip * config.engine.micro_batch_size * config.data.repeated_sampling
    parameters, sends_16_bits = count_parameters(config).total, config.engine.reduce_dtype == "bf16"
    return Work(seconds / 3, 2 * seconds / 3, 0.0, parameters, matrices(config), sends_16_bits)


def matrices(config: Config) -> int:
    """Count the weights that ZeRO-3 gathers: four per block, projection, embeddings and heads."""
    size, heads, trunks = config.model.dimensions, len(output_sizes(config)), decoder_trunks(config)
    return 4 * (size.depth + trunks * config.model.decoder_depth) + 1 + trunks + heads


def model_scaling(config: Config, work: Work, network: Network, overlap: float) -> list[dict[str, Any]]:
    """Return the efficiency of weak and strong scaling for each ZeRO stage and number of GPUs."""
    rows = []
    for stage in STAGES:
        options: dict[str, Any] = {"bucket": BUCKET, "overlap": overlap}
        alone = step_parts(work, network, 1, stage, **options).step
        for ranks in GPUS:
            weak = step_parts(work, network, ranks, stage, **options)
            micro_batches = config.optim.global_batch_size / config.engine.micro_batch_size / ranks
            strong = step_parts(work, network, ranks, stage, micro_batches=micro_batches, **options)
            rows.append(
                {
                    "stage": stage,
                    "ranks": ranks,
                    **asdict(weak),
                    "weak": alone / weak.step,
                    "strong": micro_batches * alone / strong.step if ranks <= config.optim.global_batch_size else None,
                }
            )
    return rows


def last_above(rows: list[dict[str, Any]], stage: int, kind: str, limit: float) -> int:
    """Return the largest number of GPUs up to which the efficiency stays at ``limit`` or above."""
    last = 0
    for row in rows:
        if row["stage"] == stage:
            if row[kind] is None or row[kind] < limit:
                break
            last = row["ranks"]
    return last


def show_scaling(rows: list[dict[str, Any]], config: Config, assumed: str) -> None:
    """Print the efficiencies, and the numbers of GPUs at which the efficiencies fall below the limits."""
    table = Table(title=f"{config.name}: efficiency, weak | strong scaling", title_justify="left")
    table.add_column("GPUs")
    for stage in STAGES:
        table.add_column(f"ZeRO {stage}")
    for ranks in GPUS:
        of_ranks = [row for row in rows if row["ranks"] == ranks]
        cells = [f"{r['weak']:.2f} | " + ("-" if r["strong"] is None else f"{r['strong']:.2f}") for r in of_ranks]
        table.add_row(str(ranks), *cells)
    console = Console()
    console.print(table)
    console.print(assumed)
    for stage in STAGES:
        kinds = {"weak": "weak scaling", "strong": f"strong scaling, batch {config.optim.global_batch_size}"}
        ends = [
            f"{name}: at least {limit} up to {last_above(rows, stage, kind, limit)} GPUs"
            for kind, name in kinds.items()
            for limit in LIMITS
        ]
        console.print(f"ZeRO {stage}: {'; '.join(ends)}")


def draw(rows: list[dict[str, Any]], config: Config, assumed: str, path: Path) -> None:
    """Plot both efficiencies over the number of GPUs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {
        "weak": f"weak: {config.engine.micro_batch_size} clips per GPU",
        "strong": f"strong: {config.optim.global_batch_size} clips per step",
    }
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for stage, style in zip(STAGES, ("-", "--", "-.", ":"), strict=True):
            chosen = [row for row in rows if row["stage"] == stage and row[kind] is not None]
            panel.plot([r["ranks"] for r in chosen], [r[kind] for r in chosen], style, label=f"ZeRO {stage}")
        for limit in LIMITS:
            panel.axhline(limit, color="grey", linewidth=0.6)
        panel.set_xscale("log", base=2)
        panel.set(title=title, xlabel="GPUs", ylim=(0, 1.03))
        panel.xaxis.set_major_formatter("{x:.0f}")
    panels[0].set_ylabel("efficiency")
    panels[0].legend(loc="lower left")
    figure.suptitle(textwrap.fill(f"{config.name}, modelled: {assumed}", 110), fontsize=8)
    figure.savefig(path, dpi=80)


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds of ``action`` after a barrier. All ranks must call this."""
    dist.barrier()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def slowest(times: list[float]) -> float:
    """Return the time of the slowest rank in the best repetition, which other programs disturb least.

    All ranks must call this.
    """
    return min(max(row) for row in zip(*gather_objects(times), strict=True))


def measure_link(world: int) -> dict[str, list[float]]:
    """Return the seconds of gloo's collectives for each size of MESSAGES."""
    found: dict[str, list[float]] = {"all_reduce": [], "all_gather": []}
    for size in MESSAGES:
        whole, part = torch.zeros(size // 4), torch.zeros(size // 4 // world)
        repeats = 50 if size < 1e6 else 10
        actions: dict[str, Callable[[], Any]] = {
            "all_reduce": partial(dist.all_reduce, whole),
            "all_gather": partial(dist.all_gather_into_tensor, whole, part),
        }
        for name, action in actions.items():
            found[name].append(slowest([timed(action) for _ in range(repeats)]))
    return found


def measure_compute(config: Config, clips: torch.Tensor, seeds: torch.Tensor) -> float:
    """Return the seconds of forward and backward pass, on all ranks at once, without DeepSpeed and communication."""
    model = build_motionmae(config)

    def step() -> None:
        model(clips, seeds).total.backward()
        model.zero_grad()

    step()
    return slowest([timed(step) for _ in range(5)])


def measure_steps(
    config: Config, rank: DistributedContext, clips: torch.Tensor, seeds: torch.Tensor
) -> dict[str, float]:
    """Return the seconds of each phase of a step and of the whole step."""
    model = build_motionmae(config)
    engine = Engine(model, Pretraining(config).parameter_groups(model), config, rank, stage=config.engine.zero_stage)
    phases: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": [], "step": []}
    for number in range(8):
        dist.barrier()
        marks = [time.perf_counter()]
        loss = engine(clips, seeds).total
        marks.append(time.perf_counter())
        engine.backward(loss)
        marks.append(time.perf_counter())
        engine.step()
        marks.append(time.perf_counter())
        if number > 1:  # DeepSpeed builds buckets and traces in the first two
            spans = [*(end - begin for begin, end in pairwise(marks)), marks[-1] - marks[0]]
            for name, span in zip(phases, spans, strict=True):
                phases[name].append(span)
    engine.close()
    return {name: slowest(times) for name, times in phases.items()}


def measure_here(config: Config) -> dict[str, Any]:
    """Measure collectives, computation, and steps of every ZeRO stage. All ranks must call this."""
    with distributed(config.engine) as rank:
        clip, number = config.clip, config.engine.micro_batch_size
        clips = torch.randint(256, (number, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8)
        seeds = torch.arange(number) + rank.rank * number
        config = config.updated({"optim.global_batch_size": number * rank.world})
        import_deepspeed(rank.device)  # before the first collective: silences deprecation warnings of torch
        link = measure_link(rank.world) if rank.world > 1 else {}
        compute = measure_compute(config, clips, seeds)
        steps = {
            str(stage): measure_steps(config.updated({"engine.zero_stage": stage}), rank, clips, seeds)
            for stage in STAGES
        }
        return {"world": rank.world, "link": link, "compute": compute, "steps": steps}


def fit_link(seconds: list[float], rounds: int) -> Link:
    """Fit a link to the ``seconds`` of MESSAGES, each sent in ``rounds`` rounds of half its bytes."""
    small, large = seconds
    beta = rounds / 2 * (MESSAGES[1] - MESSAGES[0]) / max(large - small, 1e-9)
    return Link(max(small / rounds - MESSAGES[0] / 2 / beta, 0.0), beta)


def predict_steps(measured: dict[int, dict[str, Any]], config: Config, cores: int) -> list[dict[str, Any]]:
    """Predict the steps on every number of processes from the measurements on one and two."""
    alone, pair = measured[1], measured[2]
    reduce, gather = (fit_link(pair["link"][name], rounds) for name, rounds in (("all_reduce", 2), ("all_gather", 1)))
    beside_another = pair["compute"] / alone["compute"]
    rows = []
    for world in measured:
        sharing = max(world / cores, 1.0)
        slower = sharing * (beside_another if world > 1 else 1.0)
        for stage in STAGES:
            phases = alone["steps"][str(stage)]
            forward, backward, optimizer = (slower * phases[name] for name in ("forward", "backward", "optimizer"))
            parameters, sends_16_bits = count_parameters(config).total, config.engine.reduce_dtype == "bf16"
            work = Work(forward, backward, optimizer, parameters, matrices(config), sends_16_bits)
            inside = gather.shared(sharing)
            network = Network(inside, inside, world, reduce.shared(sharing))
            predicted = step_parts(work, network, world, stage, bucket=BUCKET).step
            real = measured[world]["steps"][str(stage)]["step"]
            rows.append({"world": world, "stage": stage, "predicted": predicted, "measured": real})
    return rows


def check(config: Config, arguments: list[str], most: int) -> dict[str, Any]:
    """Measure on 1, 2 and 4 processes, up to ``most``, and print the predictions beside the measurements."""
    measured = {world: run_ranks(world, arguments) for world in WORLDS if world <= most}
    rows = predict_steps(measured, config, len(os.sched_getaffinity(0)))
    table = Table(title="seconds per step on this machine", title_justify="left")
    for column in ("processes", "ZeRO", "predicted", "measured", "error"):
        table.add_column(column)
    for row in rows:
        row["error"] = row["predicted"] / row["measured"] - 1
        times = (f"{row['predicted']:.3f}", f"{row['measured']:.3f}", f"{row['error']:+.0%}")
        table.add_row(str(row["world"]), str(row["stage"]), *times)
    Console().print(table)
    return {"measured": measured, "rows": rows}


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError if the value of an option is out of range."""
    positive = ("per_node", "mfu", "seconds_per_clip", "inside_gbs", "outside_gbs")
    for name in (*positive, "inside_us", "outside_us", "overlap"):
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if not 0 <= value < math.inf or (value == 0 and name in positive):  # not nan either
            least = "above" if name in positive else "at least"
            raise UserError(f"{flag} {value} is out of range: it must be {least} 0")
        if name in ("mfu", "overlap") and value > 1:
            raise UserError(f"{flag} {value} is out of range: it is a fraction and at most 1")


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--config", default="vitl_k400", help="config of model and batch (default: vitl_k400)")
    parser.add_argument("--gpu", default=DEFAULT, help=f"GPU of `motionmae plan` (default: {DEFAULT})")
    parser.add_argument("--mfu", type=float, default=0.4, help="model FLOPs utilisation (default: 0.4)")
    parser.add_argument("--seconds-per-clip", type=float, help="seconds measured on one GPU, instead of --mfu")
    parser.add_argument("--inside-us", type=float, default=5.0, help="microseconds of latency in a node (default: 5)")
    parser.add_argument("--inside-gbs", type=float, help="GB/s inside a node (default: 0.8 of the GPU's data sheet)")
    parser.add_argument("--outside-us", type=float, default=10.0, help="the same between nodes (default: 10)")
    parser.add_argument("--outside-gbs", type=float, default=20.0, help="GB/s per GPU between nodes (default: 20)")
    parser.add_argument("--per-node", type=int, default=8, help="GPUs per node (default: 8)")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of the backward pass that overlaps messages")
    parser.add_argument("--check", action="store_true", help="compare the model with processes on this machine")
    parser.add_argument(
        "--processes", type=int, choices=WORLDS[1:], default=WORLDS[-1], help="most processes of --check (default: 4)"
    )
    parser.add_argument("--picture", type=output_file, help="PNG file for the plot")
    parser.add_argument("--json", type=output_file, help="file for the numbers")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_args()
    check_options(options)
    if options.check:
        config = load_config("vitb_k400", options.overrides or SMALL)
        if "RANK" in os.environ:  # a process that check() has started
            figures = measure_here(config)
            if os.environ["RANK"] != "0":
                return
        else:
            figures = check(config, sys.argv[1:], options.processes)
    else:
        config, gpu = load_config(options.config, options.overrides), find_gpu(options.gpu)
        seconds = options.seconds_per_clip or step_flops(config).model / (gpu.tflops * 1e12 * options.mfu)
        inside = options.inside_gbs or 0.8 * gpu.link
        network = Network(
            Link(options.inside_us / 1e6, inside * 1e9),
            Link(options.outside_us / 1e6, options.outside_gbs * 1e9),
            options.per_node,
        )
        rows = model_scaling(config, gpu_work(config, seconds), network, options.overlap)
        source = "measured" if options.seconds_per_clip else f"{options.mfu:.0%} MFU"
        assumed = (
            f"{seconds * 1e3:.2f} ms per clip ({source}), "
            f"{options.gpu}, {inside:.0f} GB/s and {options.inside_us:.0f} us inside a node of {options.per_node}, "
            f"{options.outside_gbs:.0f} GB/s and {options.outside_us:.0f} us per GPU between nodes, "
            f"{options.overlap:.0%} of the backward pass overlaps"
        )
        show_scaling(rows, config, assumed)
        if options.picture:
            draw(rows, config, assumed, options.picture)
        figures = {"assumed": assumed, "network": asdict(network), "rows": rows}
    write_json(options.json, figures)


if __name__ == "__main__":
    run_script(main)

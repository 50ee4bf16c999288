"""`motionmae plan`: estimate parameters, memory and time of a run before it is submitted."""

import argparse
import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from motionmae.commands.app import Command, add_config_arguments
from motionmae.config import Config, load_config
from motionmae.errors import UserError
from motionmae.files import output_file
from motionmae.planning.gpus import DEFAULT, GPUS, USABLE, find_gpu

if TYPE_CHECKING:
    from motionmae.planning.estimate import Assumptions, Choice, Plan

MFU = 0.4
LOADER_SPEED = 170.0
"""Copies of the defaults in :mod:`motionmae.planning.estimate`, which is too slow to import for --help."""
_GB = 1e9
_EPILOG = """\
examples:
  motionmae plan --config vitl_k400 --nodes 4 --gpu a100-80
  motionmae plan --config vith_k400 --nodes 4 --gpu h100-80 engine.zero_stage=2 model.activation_checkpointing=full
  motionmae plan --config vitb_k400 --gpu a100-40 --mfu 0.35 --videos 240000 --json plan.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_config_arguments(parser)
    parser.add_argument("--nodes", type=int, help="number of nodes (launch.nodes)")
    parser.add_argument("--gpu", metavar="GPU", help=f"one of {', '.join(GPUS)} (default for runs on GPUs: {DEFAULT})")
    parser.add_argument("--peak-tflops", type=float, help="peak of one GPU (default: from its data sheet)")
    parser.add_argument(
        "--mfu",
        type=float,
        default=MFU,
        help="share of the peak that training reaches, without recomputation (default: 0.4)",
    )
    parser.add_argument("--videos", type=int, help="size of the training set (default: from data.shards)")
    parser.add_argument(
        "--loader-speed",
        type=float,
        default=LOADER_SPEED,
        metavar="CLIPS",
        help="clips of 16 frames that one core decodes per second (default: 170, measured by benchmarks/loader.py)",
    )
    parser.add_argument("--json", type=output_file, help="also write the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate of a run."""
    from motionmae.files import write_atomically
    from motionmae.planning.estimate import Assumptions

    for flag in ("peak_tflops", "mfu", "videos", "loader_speed"):
        value = getattr(arguments, flag)
        if value is not None and not 0 < value < math.inf:  # false for nan too
            raise UserError(f"--{flag.replace('_', '-')} {value} is not possible: give a positive, finite number")
    if arguments.mfu > 1:
        raise UserError(f"--mfu {arguments.mfu} is not possible: give a share of the peak up to 1, for example 0.4")
    nodes = [] if arguments.nodes is None else [f"launch.nodes={arguments.nodes}"]
    config = load_config(arguments.config, [*arguments.overrides, *nodes])
    assumed = None
    if config.launch.gpus_per_node or arguments.gpu or arguments.peak_tflops:
        gpu = find_gpu(arguments.gpu or DEFAULT)
        gpu = replace(gpu, tflops=arguments.peak_tflops or gpu.tflops)
        assumed = Assumptions(gpu, arguments.mfu, arguments.loader_speed)
    figures = print_plan(config, assumed, arguments.videos)
    if arguments.json:
        write_atomically(arguments.json, json.dumps(figures, indent=1).encode() + b"\n")
    return 0


def print_plan(config: Config, assumed: "Assumptions | None", videos: int | None = None) -> dict[str, Any]:
    """Print the estimate of a run, and return its figures.

    Args:
        config: the run.
        assumed: None leaves out times and the largest micro batch.
        videos: size of the training set; None reads it from the shards.

    Raises:
        UserError: see :func:`motionmae.planning.estimate.make_plan`.
    """
    from motionmae.planning import estimate as plans  # imports torch and timm

    plan = plans.make_plan(config, videos)
    table = Table(title=f"{config.name}: estimate", title_justify="left", show_header=False)
    for row in (*_model_rows(plan, config), *(_time_rows(plan, config, assumed) if assumed else ())):
        table.add_row(*row)
    Console().print(table)
    if assumed is None:
        return {"plan": asdict(plan)}
    choices = plans.compare_choices(config, assumed.gpu)
    Console(soft_wrap=True).print(_choice_table(choices, plan, config, assumed))
    Console().print(_verdict(choices, config, plan, assumed))
    return {
        "assumed": asdict(assumed),
        "plan": asdict(plan),
        "clips_per_second": plan.clips_per_second(assumed),
        "gpu_days": plan.gpu_days(assumed),
        "loader_cores": plan.loader_cores(assumed, config.launch.ntasks_per_node),
        "choices": [asdict(choice) for choice in choices],
    }


def default_assumptions(config: Config) -> "Assumptions | None":
    """Assumptions about a run whose command line names no hardware; None for a run without GPUs."""
    from motionmae.planning.estimate import Assumptions

    return Assumptions(find_gpu(DEFAULT), MFU) if config.launch.gpus_per_node else None


def _model_rows(plan: "Plan", config: Config) -> list[tuple[str, str]]:
    encoder, decoders = plan.encoder_parameters / 1e6, plan.decoder_parameters / 1e6
    parts = f" (encoder {encoder:.1f} M, decoders {decoders:.1f} M)" if decoders else " without a classification layer"
    unit = "GPU" if config.launch.gpus_per_node else "rank"
    chosen = f"ZeRO stage {_stage(config)}, activation_checkpointing={config.model.activation_checkpointing}"
    uncounted = "unknown: data.shards has no manifest.json yet (or give --videos)"
    return [
        ("parameters", f"{encoder + decoders:.1f} M{parts}"),
        (
            "as a classifier",
            f"{plan.classifier_parameters / 1e6:.1f} M with {plan.classes} classes, "
            f"{plan.gflops_per_view:.4g} GFLOPs a view (multiply-additions, as papers count)",
        ),
        ("ranks", f"{plan.ranks} ({config.launch.nodes} nodes x {config.launch.ntasks_per_node})"),
        (
            "clips a step",
            f"{plan.clips_per_step} ({config.engine.micro_batch_size} videos x {config.data.repeated_sampling} clips "
            f"x {plan.ranks} ranks x {plan.accumulation} accumulation)",
        ),
        (f"memory a {unit}", f"{plan.memory.peak / _GB:.1f} GB at its peak ({chosen})"),
        (
            "work a clip",
            f"{plan.flops_per_clip / 1e9:.4g} GFLOP forward and backward, "
            f"{plan.recomputed_flops_per_clip / 1e9:.4g} recomputed",
        ),
        (
            "steps",
            uncounted
            if plan.steps is None
            else f"{plan.steps}: {plan.epochs} epochs of {plan.steps_per_epoch} ({plan.videos} videos)",
        ),
    ]


def _time_rows(plan: "Plan", config: Config, assumed: "Assumptions") -> list[tuple[str, str]]:
    speed, days = plan.clips_per_second(assumed), plan.gpu_days(assumed)
    assuming = f"at {assumed.mfu:.0%} MFU of {assumed.gpu.tflops:.0f} TFLOP/s a GPU"
    cores = plan.loader_cores(assumed, config.launch.ntasks_per_node)
    asked = config.launch.ntasks_per_node * config.launch.cpus_per_task
    return [
        ("clips a second", f"{speed:.0f}, {speed / plan.ranks:.1f} a GPU, {assuming}"),
        (
            "time",
            f"{days / plan.ranks:.3g} days on {plan.ranks}, {days:.3g} GPU-days, {assuming}"
            if days is not None
            else f"{1e6 / speed * plan.ranks / 86_400:.2f} GPU-days for a million clips, {assuming}",
        ),
        (
            "loader cores a node",
            f"{cores} at {assumed.loader_speed:.0f} clips of 16 frames a second and core; the job asks for {asked}",
        ),
    ]


def _choice_table(choices: "list[Choice]", plan: "Plan", config: Config, assumed: "Assumptions") -> Table:
    unit = "GPU" if config.launch.gpus_per_node else "rank"
    table = Table(
        title=f"GB a {unit} at micro batch {config.engine.micro_batch_size}; what fits a card of "
        f"{assumed.gpu.gigabytes:.0f} GB of which {USABLE:.0%} are filled",
        title_justify="left",
    )
    columns = ("ZeRO", "checkpointing", "parameters", "gradients", "optimiser", "buffers", "activations", "peak")
    for column in (*columns, "fits", "largest micro batch", "work"):
        table.add_column(column, min_width=max(map(len, column.split())))
    for choice in choices:
        memory = choice.memory
        parts = (memory.parameters, memory.gradients, memory.optimizer, memory.buffers, memory.activations)
        table.add_row(
            str(choice.zero),
            choice.checkpointing,
            *(f"{part / _GB:.2f}" for part in (*parts, memory.peak)),
            "yes" if choice.largest_micro_batch >= config.engine.micro_batch_size else "no",
            str(choice.largest_micro_batch),
            f"+{choice.recomputed_share:.0%}",
            style="bold" if _is_chosen(choice, config) else "",
            end_section=choice.checkpointing == "full",
        )
    return table


def _verdict(choices: "list[Choice]", config: Config, plan: "Plan", assumed: "Assumptions") -> str:
    """One sentence on whether the configured micro batch fits."""
    chosen = next(choice for choice in choices if _is_chosen(choice, config))
    videos, largest = config.engine.micro_batch_size, chosen.largest_micro_batch
    what = f"engine.zero_stage={chosen.zero} model.activation_checkpointing={chosen.checkpointing}"
    peak = f"{chosen.memory.peak / _GB:.1f} GB a {'GPU' if config.launch.gpus_per_node else 'rank'}"
    dividing = [m for m in range(1, largest + 1) if config.optim.global_batch_size % (m * plan.ranks) == 0]
    best = (
        f"the largest that fits and divides optim.global_batch_size={config.optim.global_batch_size} is {dividing[-1]}"
        if dividing
        else ""
    )
    if largest >= videos:
        return f"{what} engine.micro_batch_size={videos}: {peak}, fits; {best}"
    remedy = best or "choose more checkpointing, a higher ZeRO stage or a larger GPU"
    return f"{what} engine.micro_batch_size={videos}: {peak}, does NOT fit {assumed.gpu.gigabytes:.0f} GB; {remedy}"


def _is_chosen(choice: "Choice", config: Config) -> bool:
    return (choice.zero, choice.checkpointing) == (_stage(config), config.model.activation_checkpointing)


def _stage(config: Config) -> int:
    return config.engine.stage(config.launch.nodes * config.launch.ntasks_per_node)


COMMAND = Command(
    add_arguments,
    run,
    description=(
        "Estimate a run: parameters, memory per rank by ZeRO stage and activation checkpointing,\n"
        "the largest micro batch that fits, FLOPs, time, and CPU cores for the loader."
    ),
    epilog=_EPILOG,
)

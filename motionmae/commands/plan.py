"""`motionmae plan`: estimate parameters, memory and time of a run before it is submitted."""

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motionmae.commands.app import Command, add_config_arguments, add_json_argument
from motionmae.config import Config, load_config
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.planning.gpus import DEFAULT, GPUS, PUBLISHED_MFU, USABLE, find_gpu
from motionmae.runs.directory import RunFolder
from motionmae.screen import Table, show
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.planning.estimate import Assumptions, Choice, Plan
    from motionmae.planning.gpus import Gpu

_RATES = ("rsc1", "rsc2", "llama3")
"""Names of :data:`motionmae.planning.checkpoint_interval.PUBLISHED_RATES`, which imports slowly."""
LOADER_SPEED = 170.0
"""Default. It repeats :mod:`motionmae.planning.estimate`, which is too slow to import for --help."""
_GB = 1e9
_DESCRIPTION = """\
Estimate a run: parameters, memory per rank by ZeRO stage and activation checkpointing, the largest micro-batch that
fits, FLOPs, time, and CPU cores for the loader."""
_EPILOG = """\
examples:
  motionmae plan --config vitl_k400 --nodes 4 --gpu a100-80
  motionmae plan --config vith_k400 --nodes 4 --gpu h100-80 engine.zero_stage=2 model.activation_checkpointing=full
  motionmae plan --config vitb_k400 --gpu a100-40 --mfu 0.35 --videos 240000 --json plan.json
  motionmae plan --config vitl_k400 --nodes 4 --goodput --days 60 --failures llama3 --preemptions 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--nodes", type=int, help="number of nodes (launch.nodes)")
    parser.add_argument("--gpu", metavar="GPU", help=f"one of {', '.join(GPUS)} (default for runs on GPUs: {DEFAULT})")
    parser.add_argument("--peak-tflops", type=float, help="peak of one GPU (default: from its data sheet)")
    measured = f"default: measured by `motionmae doctor gpu`, else {PUBLISHED_MFU:g}, published"
    reached = f"share of the peak that training reaches, without recomputation ({measured})"
    parser.add_argument("--mfu", type=float, help=reached)
    parser.add_argument("--videos", type=int, help="size of the training set (default: from data.shards)")
    decoded = "clips of 16 frames that one core decodes per second (default: %(default)g, from benchmarks/loader.py)"
    parser.add_argument("--loader-speed", type=float, default=LOADER_SPEED, metavar="CLIPS", help=decoded)
    goodput = parser.add_argument_group("goodput (--goodput)")
    simulated = "simulate failures, restarts and queue, and print the share of productive time"
    goodput.add_argument("--goodput", action="store_true", help=simulated)
    goodput.add_argument("--days", type=float, default=30.0, help="simulated days (default: %(default)g)")
    rates = f"failures of 1000 nodes in a day, or a published rate: {', '.join(_RATES)} (default: {_RATES[0]})"
    goodput.add_argument("--failures", default=_RATES[0], metavar="RATE", help=rates)
    preempted = "preemptions a day (default: those of the history, else 0)"
    goodput.add_argument("--preemptions", type=float, metavar="RATE", help=preempted)
    measured = "run folder whose times are used (default: the config's own, if the run has begun)"
    goodput.add_argument("--history", type=Path, metavar="RUN", help=measured)
    seconds = "seconds of a step (default: of the history, else estimated)"
    goodput.add_argument("--step-seconds", type=float, metavar="SECONDS", help=seconds)
    add_json_argument(parser, "plan")


def run(arguments: argparse.Namespace) -> int:
    for flag in ("peak_tflops", "mfu", "videos", "loader_speed", "days", "step_seconds"):
        value = getattr(arguments, flag)
        if value is not None and not 0 < value < math.inf:  # false for nan too
            raise UserError(f"--{flag.replace('_', '-')} must be a positive, finite number, not {value}")
    if arguments.preemptions is not None and not 0 <= arguments.preemptions < math.inf:
        raise UserError(f"--preemptions must be at least 0, not {arguments.preemptions}")
    if arguments.mfu is not None and arguments.mfu > 1:
        raise UserError(f"--mfu must be at most 1, not {arguments.mfu}: give a share of the peak, for example 0.4")
    nodes = [] if arguments.nodes is None else [f"launch.nodes={arguments.nodes}"]
    config = load_config(arguments.config, [*arguments.overrides, *nodes])
    assumed = None
    if config.launch.gpus_per_node or arguments.gpu or arguments.peak_tflops:
        gpu = find_gpu(arguments.gpu or DEFAULT)
        gpu = replace(gpu, tflops=arguments.peak_tflops or gpu.tflops)
        assumed = make_assumptions(config, gpu, arguments.mfu, arguments.loader_speed)
    figures = print_plan(config, assumed, arguments.videos)
    if arguments.goodput:
        figures["goodput"] = _print_goodput(config, assumed, arguments)
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def print_plan(config: Config, assumed: "Assumptions | None", videos: int | None = None) -> dict[str, Any]:
    """Print the estimate of a run, and return its figures.

    Args:
        assumed: None leaves out times and the largest micro-batch.
        videos: size of the training set; None reads it from the shards.

    Raises:
        UserError: the global batch does not divide over the ranks, or the shards are invalid or too small for one step.
    """
    from motionmae.planning.estimate import compare_choices, make_plan

    plan = make_plan(config, videos)
    table = Table(title=f"{config.name}: estimate", title_justify="left", show_header=False)
    for row in (*_model_rows(plan, config), *(_time_rows(plan, config, assumed) if assumed else ())):
        table.add_row(*row)
    show(table)
    if assumed is None:
        return {"plan": asdict(plan)}
    choices = compare_choices(config, assumed.gpu)
    show(_choice_table(choices, plan, config, assumed), wrap=False)
    say(_verdict(choices, config, plan, assumed))
    return {
        "assumed": asdict(assumed),
        "plan": asdict(plan),
        "clips_per_second": plan.clips_per_second(assumed),
        "gpu_days": plan.gpu_days(assumed),
        "loader_cores": plan.loader_cores(assumed, config.launch.ntasks_per_node),
        "choices": [asdict(choice) for choice in choices],
    }


def _print_goodput(config: Config, assumed: "Assumptions | None", arguments: argparse.Namespace) -> dict[str, Any]:
    from motionmae.planning.estimate import make_plan
    from motionmae.planning.goodput_report import GoodputOptions, report_goodput

    step = arguments.step_seconds
    if step is None and assumed:
        plan = make_plan(config, arguments.videos)
        step = plan.clips_per_step / plan.clips_per_second(assumed)
    history = arguments.history or config.run_folder
    options = GoodputOptions(arguments.days, arguments.failures, arguments.preemptions, history, step)
    if arguments.history and not RunFolder(history).events.is_file():
        raise UserError(f"{history} has no events.jsonl: give the folder of a run that has begun")
    return report_goodput(config, options, given_step=arguments.step_seconds)


def default_assumptions(config: Config) -> "Assumptions | None":
    """Return assumptions about a run on the default GPU; None for a run without GPUs."""
    return make_assumptions(config, find_gpu(DEFAULT)) if config.launch.gpus_per_node else None


def make_assumptions(
    config: Config, gpu: "Gpu", mfu: float | None = None, loader_speed: float = LOADER_SPEED
) -> "Assumptions":
    """Return assumptions about a run on ``gpu``. Without ``mfu``, the MFU is measured, or the best published."""
    from motionmae.planning.estimate import Assumptions
    from motionmae.planning.measured_speed import find_speed

    if mfu is not None:
        return Assumptions(gpu, mfu, loader_speed)
    if measured := find_speed(config, gpu):
        how = f"measured by `motionmae doctor gpu` on {measured.device}, micro-batch {measured.micro_batch_size}"
        return Assumptions(gpu, measured.mfu, loader_speed, how)
    return Assumptions(gpu, PUBLISHED_MFU, loader_speed, "published for such training, not measured on this GPU")


def _model_rows(plan: "Plan", config: Config) -> list[tuple[str, str]]:
    encoder, decoders = plan.encoder_parameters / 1e6, plan.decoder_parameters / 1e6
    parts = f" (encoder {encoder:.1f} M, decoders {decoders:.1f} M)" if decoders else " without a classification layer"
    classifier = f"{plan.classifier_parameters / 1e6:.1f} M with {plan.classes} classes"
    videos = f"{config.engine.micro_batch_size} videos x {config.data.repeated_sampling} clips"
    chosen = f"ZeRO stage {_stage(config)}, activation_checkpointing={config.model.activation_checkpointing}"
    flops, recomputed = plan.flops_per_clip / 1e9, plan.recomputed_flops_per_clip / 1e9
    steps = "unknown: data.shards has no manifest.json yet (or give --videos)"
    if plan.steps is not None:
        steps = f"{plan.steps}: {plan.epochs} epochs of {plan.steps_per_epoch} ({plan.videos} videos)"
    return [
        ("parameters", f"{encoder + decoders:.1f} M{parts}"),
        ("as a classifier", f"{classifier}, {plan.gflops_per_view:.4g} GFLOPs a view (multiply-additions)"),
        ("ranks", f"{plan.ranks} ({config.launch.nodes} nodes x {config.launch.ntasks_per_node})"),
        ("clips a step", f"{plan.clips_per_step} ({videos} x {plan.ranks} ranks x {plan.accumulation} accumulation)"),
        (f"memory a {_unit(config)}", f"{plan.memory.peak / _GB:.1f} GB at its peak ({chosen})"),
        ("host memory a node", _host_memory(config)),
        ("work a clip", f"{flops:.4g} GFLOP forward and backward, {recomputed:.4g} recomputed"),
        ("steps", steps),
        *([("samples an epoch", plan.mixture)] if plan.mixture else []),
    ]


def _host_memory(config: Config) -> str:
    from motionmae.planning.memory import predict_checkpoint_memory

    memory = predict_checkpoint_memory(config)
    text = f"{memory.staging / _GB:.2f} GB to stage checkpoints"
    if memory.copies:
        text += f", up to {memory.copies / _GB:.2f} GB of /dev/shm for memory copies"
    return text


def _time_rows(plan: "Plan", config: Config, assumed: "Assumptions") -> list[tuple[str, str]]:
    speed, days = plan.clips_per_second(assumed), plan.gpu_days(assumed)
    assuming = f"at {assumed.mfu:.3g} MFU ({assumed.mfu_source}) of {assumed.gpu.tflops:.0f} TFLOP/s"
    cores = plan.loader_cores(assumed, config.launch.ntasks_per_node)
    requested = config.launch.ntasks_per_node * config.launch.cpus_per_task
    decoding = f"{cores} at {assumed.loader_speed:.0f} clips of 16 frames a second and core"
    if days is None:
        time = f"{1e6 / speed * plan.ranks / 86_400:.2f} GPU-days for a million clips"
    else:
        time = f"{days / plan.ranks:.3g} days on {plan.ranks}, {days:.3g} GPU-days"
    return [
        ("clips a second", f"{speed:.0f}, {speed / plan.ranks:.1f} a GPU, {assuming}"),
        ("time", f"{time} at this speed"),
        ("loader cores a node", f"{decoding}; the job requests {requested}"),
    ]


def _choice_table(choices: "list[Choice]", plan: "Plan", config: Config, assumed: "Assumptions") -> Table:
    gpu = f"fits: into {USABLE:.0%} of a GPU's {assumed.gpu.gigabytes:.0f} GB"
    title = f"GB a {_unit(config)} at micro-batch {config.engine.micro_batch_size}; {gpu}"
    table = Table(title=title, title_justify="left")
    columns = ("ZeRO", "checkpointing", "parameters", "gradients", "optimiser", "buffers", "activations", "peak")
    for column in (*columns, "fits", "largest micro-batch", "work"):
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
    """Return a sentence that says whether the configured micro-batch fits."""
    chosen = next(choice for choice in choices if _is_chosen(choice, config))
    videos, largest = config.engine.micro_batch_size, chosen.largest_micro_batch
    settings = f"engine.zero_stage={chosen.zero} model.activation_checkpointing={chosen.checkpointing}"
    peak = f"{settings} engine.micro_batch_size={videos}: {chosen.memory.peak / _GB:.1f} GB a {_unit(config)}"
    batch = config.optim.global_batch_size
    dividing = [m for m in range(1, largest + 1) if batch % (m * plan.ranks) == 0]
    best = f"the largest that fits and divides optim.global_batch_size={batch} is {dividing[-1]}" if dividing else ""
    if largest >= videos:
        return f"{peak}, fits; {best}"
    remedy = best or "choose more checkpointing, a higher ZeRO stage or a larger GPU"
    return f"{peak}, does NOT fit {assumed.gpu.gigabytes:.0f} GB; {remedy}"


def _unit(config: Config) -> str:
    return "GPU" if config.launch.gpus_per_node else "rank"


def _is_chosen(choice: "Choice", config: Config) -> bool:
    return (choice.zero, choice.checkpointing) == (_stage(config), config.model.activation_checkpointing)


def _stage(config: Config) -> int:
    return config.engine.stage(config.launch.nodes * config.launch.ntasks_per_node)


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

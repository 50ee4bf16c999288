"""``python -m motionmae plan``: what a run will take, before anything is asked of a cluster."""

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from motionmae.config import Config, load_config

if TYPE_CHECKING:
    from motionmae.training.plan import Plan

PEAK_TFLOPS = 312.0
"""Of an A100 in bf16, without sparsity (NVIDIA's data sheet)."""
MFU = 0.4
_GB = 1e9
_EXAMPLES = """examples:
  python -m motionmae plan --config vitl_k400 --nodes 4
  python -m motionmae plan --config vith_k400 --nodes 8 engine.zero=2 model.activation_checkpointing=full
  python -m motionmae plan --config vitb_k400 --peak-tflops 989 --mfu 0.35
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "plan",
        help="estimate parameters, memory and time of a run",
        description="Estimate what a run will take: parameters, memory a rank, clips a step, time.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="name of a file in configs/, or the path of a YAML file")
    parser.add_argument("--nodes", type=int, help="nodes of the job (launch.nodes)")
    parser.add_argument("--peak-tflops", type=float, default=PEAK_TFLOPS, help="of one GPU (default: an A100's 312)")
    parser.add_argument("--mfu", type=float, default=MFU, help="share of the peak that training reaches (default 0.4)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table and return the exit status."""
    nodes = [] if arguments.nodes is None else [f"launch.nodes={arguments.nodes}"]
    print_plan(load_config(arguments.config, [*arguments.overrides, *nodes]), arguments.peak_tflops, arguments.mfu)
    return 0


def print_plan(config: Config, peak_tflops: float = PEAK_TFLOPS, mfu: float = MFU) -> None:
    """Print what the run of ``config`` takes.

    Raises:
        UserError: see :func:`motionmae.training.plan.make_plan`.
    """
    from motionmae.training.plan import make_plan  # torch and timm: slow, and not needed for --help

    plan = make_plan(config)
    table = Table(title=f"{config.name}: estimate", title_justify="left", show_header=False)
    for row in (*_model_rows(plan, config), *_memory_rows(plan, config), *_time_rows(plan, peak_tflops, mfu)):
        table.add_row(*row)
    Console().print(table)


def _model_rows(plan: "Plan", config: Config) -> list[tuple[str, str]]:
    parameters = plan.encoder_parameters + plan.decoder_parameters
    return [
        (
            "parameters",
            f"{parameters / 1e6:.1f} M (encoder {plan.encoder_parameters / 1e6:.1f} M, "
            f"decoders {plan.decoder_parameters / 1e6:.1f} M)",
        ),
        ("ranks", f"{plan.ranks} ({config.launch.nodes} nodes x {config.launch.ranks_per_node})"),
        (
            "clips a step",
            f"{plan.clips_per_step} ({config.engine.micro_batch} videos x {config.data.repeats} clips "
            f"x {plan.ranks} ranks x {plan.accumulation} accumulation)",
        ),
    ]


def _memory_rows(plan: "Plan", config: Config) -> list[tuple[str, str]]:
    state = plan.state
    return [
        (f"memory a {'GPU' if config.launch.gpus_per_node else 'rank'}", f"{plan.memory / _GB:.1f} GB, of which"),
        ("  parameters", f"{state.parameters / _GB:.2f} GB"),
        ("  gradients", f"{state.gradients / _GB:.2f} GB"),
        ("  optimiser", f"{state.optimizer / _GB:.2f} GB (ZeRO stage {config.engine.zero})"),
        ("  buffers", f"{state.buffers / _GB:.2f} GB"),
        (
            "  activations",
            f"{plan.activations / _GB:.2f} GB (activation_checkpointing={config.model.activation_checkpointing})",
        ),
    ]


def _time_rows(plan: "Plan", peak_tflops: float, mfu: float) -> list[tuple[str, str]]:
    speed = plan.clips_per_second(peak_tflops, mfu)
    days = plan.gpu_days(peak_tflops, mfu)
    assumed = f"at {mfu:.0%} MFU of {peak_tflops:.0f} TFLOP/s a GPU"
    counted = "unknown: data.shards names no folder with a manifest.json yet"
    return [
        (
            "work a clip",
            f"{plan.flops_per_clip / 1e9:.0f} GFLOP forward and backward, "
            f"{plan.recomputed_flops_per_clip / 1e9:.0f} recomputed",
        ),
        (
            "steps an epoch",
            counted if plan.steps_per_epoch is None else f"{plan.steps_per_epoch} ({plan.videos} videos)",
        ),
        ("clips a second", f"{speed:.0f}, {speed / plan.ranks:.1f} a GPU, {assumed}"),
        (
            "time",
            f"{days:.3g} GPU-days for {plan.epochs} epochs, {days / plan.ranks:.3g} days on {plan.ranks}, {assumed}"
            if days is not None
            else f"{1e6 / speed * plan.ranks / 86_400:.2f} GPU-days for a million clips, {assumed}",
        ),
    ]

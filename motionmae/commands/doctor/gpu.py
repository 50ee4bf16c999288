"""`motionmae doctor gpu`: check training on this machine's GPUs, and measure its speed."""

import argparse
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motionmae.commands.app import Command, add_json_argument
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.gpu_checks.catalogue import BY_NAME, CHECKS
from motionmae.screen import Table, show
from motionmae.text import say

if TYPE_CHECKING:
    from motionmae.gpu_checks.check import CheckResult, Setting

_MINUTES = 8.0
_DESCRIPTION = """\
Check training on this machine's GPUs, and measure its speed: libraries, kernels, arithmetic, checkpoints, memory,
loader, faults. The measured speeds go to ~/.cache/motionmae/gpu.json, where `motionmae plan` finds them. Each check has
a time limit and runs in a process of its own or in one that is replaced after a failure. docs/operate/gpu.md explains
the figures."""
_EPILOG = """\
examples:
  motionmae doctor gpu --json gpu.json
  motionmae doctor gpu --quick
  motionmae doctor gpu --only attention speed_vitl_compiled
  motionmae doctor gpu --device cpu --quick
  torchrun --nproc-per-node 8 -m motionmae doctor gpu

Several GPUs are used if torchrun starts as many processes, or if all of them are visible. The exit status is 1 if a
check failed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only what needs no GPU")
    parser.add_argument("--quick", action="store_true", help="the smallest model everywhere; no ViT-B, ViT-L, ViT-H")
    parser.add_argument("--only", nargs="+", choices=list(BY_NAME), metavar="CHECK", help=f"from {', '.join(BY_NAME)}")
    limit = "no check begins after this time, and none runs longer (%(default)g)"
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=limit)
    add_json_argument(parser, "checks", "advice")


def run(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.minutes < math.inf:
        raise UserError("--minutes must be a positive, finite number")
    if int(os.environ.get("RANK", "0")) > 0:
        return 0  # the first process starts the ranks of each check itself
    from motionmae.gpu_checks.advice import advise
    from motionmae.gpu_checks.check import Setting, Verdict
    from motionmae.gpu_checks.runner import Runner

    chosen = [check for check in CHECKS if not arguments.only or check.name in arguments.only]
    with tempfile.TemporaryDirectory(prefix="motionmae-doctor-", ignore_cleanup_errors=True) as folder:
        ranks = _count_ranks(arguments.device)
        setting = Setting(device=arguments.device, quick=arguments.quick, folder=Path(folder), ranks=ranks)
        results = Runner(setting, 60 * arguments.minutes, _report).run(chosen)
    advice = [*advise(results), *_save_speeds(results)]
    _show(results, setting)
    for sentence in advice:
        say(sentence)
    if arguments.json:
        write_json(arguments.json, _json(results, advice, setting))
    return int(any(result.verdict is Verdict.FAILED for result in results))


def _count_ranks(device: str) -> int:
    """Return the number of processes for checks of several GPUs: torchrun's, or one for each GPU."""
    if given := os.environ.get("LOCAL_WORLD_SIZE"):
        return int(given)
    if device == "cpu":
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)  # creates no CUDA context


def _report(result: "CheckResult") -> None:
    """Print a line about a check as soon as it has ended."""
    say(f"{result.verdict:<8} {result.name} ({result.seconds:.0f} s){': ' if result.problem else ''}{result.problem}")


def _show(results: "Sequence[CheckResult]", setting: "Setting") -> None:
    table = Table(title=f"checks on {_device(results, setting)}", title_justify="left")
    for column in ("check", "verdict", "s", "findings"):
        table.add_column(column)
    for result in results:
        findings = [result.problem, *_shown(result), *(f"not run: {part}" for part in result.not_run)]
        table.add_row(result.name, str(result.verdict), f"{result.seconds:.0f}", "; ".join(filter(None, findings)))
    say()
    show(table)
    counts = Counter(str(result.verdict) for result in results)
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def _shown(result: "CheckResult") -> Iterator[str]:
    """Yield the figures that the catalogue chooses for the table; --json has all."""
    for path in BY_NAME[result.name].shown.split():
        value: object = result.figures
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and value != {}:
            yield f"{path} {value}"


def _device(results: "Sequence[CheckResult]", setting: "Setting") -> str:
    names = [str(result.figures[key]) for result in results for key in ("gpu", "device") if key in result.figures]
    return names[0] if names and setting.device == "cuda" else f"the {setting.device.replace('cuda', 'GPU').upper()}"


def _save_speeds(results: "Sequence[CheckResult]") -> list[str]:
    """Save measured speeds for `motionmae plan`; return a sentence about them."""
    from motionmae.gpu_checks.advice import speeds_of
    from motionmae.planning.measured_speed import add_speeds

    if not (speeds := speeds_of(results)):
        return []
    try:
        return [f"`motionmae plan` will use the measured MFU of {len(speeds)} cases, from {add_speeds(speeds)}"]
    except UserError as error:
        return [f"`motionmae plan` cannot use the measured MFU: {error}"]


def _json(results: "Sequence[CheckResult]", advice: list[str], setting: "Setting") -> dict[str, Any]:
    return {
        "device": _device(results, setting),
        "quick": setting.quick,
        "ranks": setting.ranks,
        "checks": [result.model_dump(mode="json") for result in results],
        "advice": advice,
    }


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

"""`motionmae doctor data`: measure whether the loader keeps up with a GPU."""

import argparse
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.filesize import decimal

from motionmae.commands.app import Command, add_config_arguments, add_json_argument
from motionmae.config import load_config
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.screen import Table, show

if TYPE_CHECKING:
    from motionmae.data.profile_loader import LoaderProfile

_DESCRIPTION = """\
Measure the loader of one rank on this machine: clips and bytes per second, the share of decoding, and the number of
cores that feed a GPU. The command trains nothing."""
_EPILOG = """\
examples:
  motionmae doctor data --config tiny_toy
  motionmae doctor data --config vitb_k400 data.workers=4 --gpu-clips 150 --seconds 20 --json loading.json

Run the command on a node with the cores of one rank (srun --cpus-per-task 12 ...)."""
_RATES = (50.0, 100.0, 200.0, 400.0, 800.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--gpu-clips", type=float, help="clips per second of one GPU (clips_per_second of a run)")
    parser.add_argument("--seconds", type=float, default=10, help="duration of the measurement (%(default)g)")
    add_json_argument(parser, "clips_per_core", "decode_share")


def run(arguments: argparse.Namespace) -> int:
    from motionmae.data.profile_loader import profile_loader  # imports torch

    config = load_config(arguments.config, arguments.overrides)
    rates = _RATES if arguments.gpu_clips is None else (arguments.gpu_clips,)
    if not all(0 < value < math.inf for value in (arguments.seconds, *rates)):
        raise UserError("--seconds and --gpu-clips must be positive, finite numbers")
    found = profile_loader(config.data, config.clip, config.engine.micro_batch_size, arguments.seconds)
    _show(found, rates)
    if arguments.json:
        figures = asdict(found) | {
            "bytes_per_second": found.bytes_per_second,
            "decode_share": found.decode_share,
            "clips_per_core": found.clips_per_core,
            "cores": {f"{rate:g}": found.cores(rate) for rate in rates},
        }
        write_json(arguments.json, figures)
    return 0


def _show(found: "LoaderProfile", rates: tuple[float, ...]) -> None:
    table = Table(title="loading of one rank", title_justify="left", show_header=False)
    table.add_row("clips a second", f"{found.clips_per_second:.1f} with {_count(found.decoders, 'decoder')}")
    table.add_row("read", f"{decimal(int(found.bytes_per_second))}/s, {decimal(int(found.bytes_per_clip))} a clip")
    table.add_row("CPU a clip", f"{found.cpu_ms:.2f} ms, of which decoding takes {found.decode_share:.0%}")
    table.add_row("clips a second a core", f"{found.clips_per_core:.1f}")
    if found.corrupt:
        table.add_row("unreadable samples", f"{found.corrupt}: `motionmae shards verify` names them")
    for rate in rates:
        enough = ": this loader has enough" if rate <= found.clips_per_second else ""
        table.add_row(f"a GPU of {rate:g} clips/s needs", f"{_count(found.cores(rate), 'core')}{enough}")
    show(table)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)

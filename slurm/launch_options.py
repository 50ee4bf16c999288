"""Table of the config section `launch`, with the flags of `motionmae submit` and the options of sbatch."""

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from motionmae.config import LaunchConfig
from motionmae.errors import UserError


@dataclass(frozen=True)
class LaunchOption:
    """One field of the config section `launch`."""

    field: str
    help: str
    text: bool = False  # free text, which is quoted as YAML
    sbatch: str | None = None  # long sbatch option; None: the same name as the flag; empty: no sbatch option

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")


LAUNCH_OPTIONS = (
    LaunchOption("nodes", "number of nodes"),
    LaunchOption("ntasks_per_node", "training processes per node, one per GPU"),
    LaunchOption("gpus_per_node", "GPUs per node; 0 trains on the CPU"),
    LaunchOption("cpus_per_task", "CPU cores per training process"),
    LaunchOption("time", "time limit of one attempt: minutes, HH:MM:SS or D-HH:MM:SS"),
    LaunchOption("signal_seconds", "seconds before the time limit at which the run must save", sbatch="signal"),
    LaunchOption("max_timeouts", "number of time limits after which the run stops requeueing itself", sbatch=""),
    LaunchOption("max_retries", "number of failures without a new checkpoint that are retried", sbatch=""),
    LaunchOption("partition", "Slurm partition", text=True),
    LaunchOption("account", "account to charge", text=True),
    LaunchOption("qos", "quality of service", text=True),
    LaunchOption("constraint", "required node features, e.g. a100", text=True),
    LaunchOption("exclude", "nodes that must not be used, e.g. node[3-4]", text=True),
    LaunchOption("comment", "free text that squeue shows", text=True),
)

_FLAG_OF_RESERVED = {"array": "--seeds"} | {
    option.flag.removeprefix("--") if option.sbatch is None else option.sbatch: option.flag
    for option in LAUNCH_OPTIONS
    if not option.text
}
"""sbatch options that only the launcher may set, each with the flag to use."""
_RESERVED = ("ntasks", "output", "error", "open-mode", "chdir", "requeue", "no-requeue", "job-name")


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    for option in LAUNCH_OPTIONS:
        metavar = "TEXT" if option.text else "TIME" if option.field == "time" else "N"
        parser.add_argument(option.flag, metavar=metavar, help=f"{option.help} (launch.{option.field})")


def launch_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the given flags as overrides of the config. Raises UserError for a time limit that cannot be parsed."""
    overrides = []
    for option in LAUNCH_OPTIONS:
        value = getattr(arguments, option.field)
        if value is None:
            continue
        if option.field == "time":
            value = parse_minutes(value)
        overrides.append(f"launch.{option.field}={json.dumps(value) if option.text else value}")
    return overrides


def requested_resources(launch: LaunchConfig) -> dict[str, Any]:
    """Return the values that sbatch takes as they are, by field name. Empty values are left out."""
    fields = [option.field for option in LAUNCH_OPTIONS if option.sbatch is None]
    return {field: getattr(launch, field) for field in fields if getattr(launch, field)}


def sbatch_options(launch: LaunchConfig) -> dict[str, str]:
    """Return :func:`requested_resources` by long sbatch option, for jobs that submitit does not submit."""
    return {field.replace("_", "-"): str(value) for field, value in requested_resources(launch).items()}


def refuse_reserved_option(option: str, origin: str) -> None:
    """Refuse an sbatch option that would break requeueing, e.g. an array that trains several times in one folder.

    ``option`` is a long sbatch option without its dashes. The message begins with ``origin``.
    """
    if option in _FLAG_OF_RESERVED:
        raise UserError(f"{origin} {option} conflicts with the launcher: use {_FLAG_OF_RESERVED[option]}")
    if option in _RESERVED:
        raise UserError(f"{origin} {option} is set by the launcher: leave it out")


def parse_sbatch_options(texts: Iterable[str]) -> dict[str, str]:
    """Parse the values of ``--sbatch KEY=VALUE``. Raises UserError for a reserved option."""
    options = {}
    for text in texts:
        key, equals, value = text.removeprefix("--").partition("=")
        if not key or not equals:
            raise UserError(f"--sbatch {text} has no value: write the long option, for example --sbatch mem=200G")
        refuse_reserved_option(key, "--sbatch")
        options[key] = value
    return options


def parse_minutes(text: str) -> int:
    """Parse a time limit in Slurm's forms: MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS. Seconds round up.

    Raises UserError for any other form.
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    well_formed = re.fullmatch(r"\d+", days) if dash else days == ""
    if not well_formed or not all(part.isdigit() for part in parts) or len(parts) > 3:
        raise UserError(f"--time {text} is not a time limit: write minutes, HH:MM:SS or D-HH:MM:SS")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    return (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)

"""Options of sbatch from the config section `launch` and from flags, and batch scripts that run without submitit."""

import argparse
import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from motionmae.config import LaunchConfig
from motionmae.config.text_types import SbatchOption, SbatchText, VariableValue, without_control
from motionmae.errors import UserError
from motionmae.text import excerpt, join_lines

_OPTIONS = {name: name.replace("_", "-") for name in LaunchConfig.model_fields}
_TEXTS = {name for name, field in LaunchConfig.model_fields.items() if field.annotation is str}
"""Keys of `launch` with free text, which must be quoted as YAML."""
_NOT_PASSED_ON = {
    *("signal_seconds", "max_timeouts", "max_retries", "chain", "preflight_seconds"),
    *("spares", "min_nodes", "standby", "heartbeat_seconds"),
}
"""Keys of `launch` that are not options of sbatch with the same name."""
_RESOURCES = [name for name in LaunchConfig.model_fields if name not in _NOT_PASSED_ON]
_FLAG_OF_RESERVED = {"array": "--seeds", "signal": "--signal-seconds"} | {
    _OPTIONS[name]: f"--{_OPTIONS[name]}" for name in _RESOURCES if name not in _TEXTS
}
"""sbatch options that only the launcher may set, each with the flag to use."""
_SBATCH_OPTIONS = TypeAdapter(dict[SbatchOption, SbatchText])
_ENVIRONMENT = TypeAdapter(dict[str, VariableValue])
_RESERVED = ("ntasks", "output", "error", "open-mode", "chdir", "requeue", "no-requeue", "job-name")


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each key of the config section `launch`."""
    for name, field in LaunchConfig.model_fields.items():
        metavar = "TEXT" if name in _TEXTS else "TIME" if name == "time" else "N"
        help_text = f"launch.{name}: {field.description}"
        parser.add_argument(f"--{_OPTIONS[name]}", metavar=metavar, help=help_text)


def add_sbatch_argument(parser: argparse.ArgumentParser) -> None:
    help_text = "any other sbatch option, e.g. mem=200G; may be repeated"
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help=help_text)


def launch_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the given flags as overrides of the config. Raises UserError for a time limit that cannot be parsed."""
    values = {name: getattr(arguments, name) for name in LaunchConfig.model_fields}
    given = {name: value for name, value in values.items() if value is not None}
    if "time" in given:
        given["time"] = parse_minutes(given["time"])
    return [
        f"launch.{name}={json.dumps(value, ensure_ascii=False) if name in _TEXTS else value}"
        for name, value in given.items()
    ]


def requested_resources(launch: LaunchConfig) -> dict[str, Any]:
    """Return the values that sbatch takes as they are, by key of `launch`. Empty values are left out."""
    return {name: getattr(launch, name) for name in _RESOURCES if getattr(launch, name)}


def refuse_reserved_option(option: str, origin: str) -> None:
    """Raise UserError for an sbatch option that breaks requeueing, e.g. an array that trains in one folder.

    ``option`` is a long sbatch option without its dashes. The message begins with ``origin``.
    """
    if option in _FLAG_OF_RESERVED:
        raise UserError(f"{origin} {option} conflicts with the launcher: use {_FLAG_OF_RESERVED[option]}")
    if option in _RESERVED:
        raise UserError(f"{origin} {option} is set by the launcher: leave it out")


def parse_sbatch_options(texts: Iterable[str]) -> dict[str, str]:
    """Parse the values of ``--sbatch KEY=VALUE`` for a run. Raises UserError for a reserved option."""
    options = parse_options(texts)
    for option in options:
        refuse_reserved_option(option, "--sbatch")
    return options


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """Parse the values of ``--sbatch KEY=VALUE``. Raises UserError for a text that could not be a line of a script."""
    options = {}
    for text in texts:
        key, equals, value = text.removeprefix("--").partition("=")
        if not key or not equals:
            raise UserError(f"--sbatch {excerpt(text)} has no value: write NAME=VALUE, for example --sbatch mem=200G")
        check_options({key: value}, "--sbatch ")
        options[key] = value
    return options


def check_options(options: Mapping[str, Any], origin: str = "--") -> None:
    """Raise UserError if the key or value of an option could end its line of a job script. ``origin`` is for messages.

    Each ``#SBATCH`` line is a comment to the shell, which would run whatever follows a line break.
    """
    _check_texts(_SBATCH_OPTIONS, {key.replace("_", "-"): str(value) for key, value in options.items()}, origin)


def check_environment(variables: Mapping[str, str]) -> None:
    """Raise UserError for a variable with control characters, which an exported line of a job script cannot hold."""
    _check_texts(_ENVIRONMENT, variables, "the environment variable ")


def _check_texts(schema: TypeAdapter[dict[str, str]], texts: Mapping[str, str], origin: str) -> None:
    try:
        schema.validate_python(texts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        raise UserError(f"{origin}{excerpt(f'{key}={texts[key]}')} is not possible: {first['ctx']['error']}") from None


def parse_minutes(text: str) -> int:
    """Parse a time limit in Slurm's forms: MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS. Seconds round up.

    Raises UserError for any other form.
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise UserError(f"--time {text} is not a time limit: write minutes, HH:MM:SS or D-HH:MM:SS")
    if not dash and len(parts) < 3:  # without days, one number is minutes and two are MM:SS
        parts.insert(0, "0")
    hours, minutes, seconds = [*map(int, parts), 0, 0][:3]
    return (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)


def batch_script(options: Mapping[str, Any], lines: Sequence[str]) -> str:
    """Return a script with long sbatch options, or the keys of :func:`requested_resources`, and with ``lines``.

    Slurm requeues the job after a preemption or a node failure. Raises UserError if a text has control characters.
    """
    check_options(options)
    for line in lines:
        try:
            without_control(line)
        except ValueError as error:
            raise UserError(f"the job's command {excerpt(line)} is not possible: {error}") from None
    directives = [f"#SBATCH --{key.replace('_', '-')}={shlex.quote(str(value))}" for key, value in options.items()]
    return "\n".join(["#!/bin/sh", *directives, "#SBATCH --requeue", "#SBATCH --open-mode=append", *lines, ""])


def sbatch(script: str) -> str:
    """Submit a script and return its job ID. Raises UserError if sbatch is not installed or refuses the job."""
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("sbatch is not installed on this machine: submit from a login node of the cluster") from None
    except subprocess.CalledProcessError as error:
        reason = join_lines(error.stderr)
        raise UserError(f"sbatch refused the job ({reason}): correct the flags, --sbatch or the site file") from error
    return done.stdout.strip().partition(";")[0]

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
    *("gpus_per_node", "gpu_type", "gpu_option", "master_interface", "master_suffix"),
}
"""Keys of `launch` that are not options of sbatch with the same name and value."""
_RESOURCES = [name for name in LaunchConfig.model_fields if name not in _NOT_PASSED_ON]
_GPUS = "--gpus-per-node NUMBER or TYPE:NUMBER, and launch.gpu_option for sites that take only gres or gpus-per-task"
_OF_LAUNCH = {_OPTIONS[name]: f"--{_OPTIONS[name]}" for name in _RESOURCES}
_FLAG_OF_RESERVED = _OF_LAUNCH | {
    "array": "--seeds",
    "signal": "--signal-seconds",
    "job-name": "name=NAME",
    "cpus-per-gpu": "--cpus-per-task",
    **dict.fromkeys(("ntasks-per-gpu", "ntasks-per-socket", "ntasks-per-core"), "--ntasks-per-node"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), _GPUS),
}
"""sbatch options that only the launcher may set, each with the flag to use."""
_RESERVED = frozenset([
    "ntasks", "output", "error", "open-mode", "chdir", "requeue", "no-requeue", "distribution", "nodefile",
    "export", "export-file", "input", "wrap", "test-only", "parsable", "wait", "help", "usage", "version",
    "quiet", "verbose", "uid", "gid", "no-kill", "tres-per-task",
])  # fmt: skip
"""sbatch options that the launcher sets, or that would keep it from running the job."""
_FLAGS = frozenset([
    "contiguous", "exclusive", "get-user-env", "hold", "ignore-pbs", "nice", "no-kill", "overcommit",
    "oversubscribe", "propagate", "reboot", "resv-ports", "spread-job", "stepmgr", "use-min-nodes",
])  # fmt: skip
"""Options of sbatch that need no value. Some of them also accept one, such as ``exclusive=user``."""
_KNOWN = _FLAGS | frozenset([
    "account", "acctg-freq", "array", "batch", "bb", "bbf", "begin", "chdir", "cluster", "cluster-constraint",
    "clusters", "comment", "constraint", "container", "container-id", "core-spec", "cores-per-socket",
    "cpu-freq", "cpus-per-gpu", "cpus-per-task", "deadline", "delay-boot", "dependency", "distribution",
    "error", "exclude", "export", "export-file", "extra", "extra-node-info", "gid", "gpu-bind", "gpu-freq",
    "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "input",
    "job-name", "kill-on-invalid-dep", "licenses", "mail-type", "mail-user", "mcs-label", "mem", "mem-bind",
    "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nodefile", "nodelist", "nodes", "ntasks",
    "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "open-mode", "output",
    "partition", "power", "prefer", "priority", "profile", "qos", "reservation", "segment", "signal",
    "sockets-per-node", "switches", "thread-spec", "threads-per-core", "time", "time-min", "tmp", "tres-bind",
    "tres-per-task", "uid", "wait-all-nodes", "wckey", "wrap", "help", "no-requeue", "parsable", "quiet",
    "requeue", "test-only", "usage", "verbose", "version", "wait",
])  # fmt: skip
"""Long options of sbatch in the manuals of Slurm 22.05 to 24.11. An option of another version passes."""
_OTHER_NAMES = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint", "c": "cpus-per-task",
    "D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "h": "help", "i":
    "input", "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N":
    "nodes", "n": "ntasks", "O": "overcommit", "o": "output", "p": "partition", "Q": "quiet", "q": "qos", "S":
    "core-spec", "s": "oversubscribe", "t": "time", "u": "usage", "V": "version", "v": "verbose", "W": "wait",
    "w": "nodelist", "x": "exclude",
    "share": "oversubscribe", "tasks-per-node": "ntasks-per-node", "workdir": "chdir",
}  # fmt: skip
"""Short and old names of options."""
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no")
_SBATCH_OPTIONS = TypeAdapter(dict[SbatchOption, SbatchText])
_ENVIRONMENT = TypeAdapter(dict[str, VariableValue])
Options = dict[str, str | bool]
"""Values of sbatch's long options; True for an option without a value."""


_METAVARS = {"time": "TIME", "standby": "true|false", "gpus_per_node": "[TYPE:]N", "gpu_option": "OPTION"}


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each key of the config section `launch`."""
    for name, field in LaunchConfig.model_fields.items():
        metavar = _METAVARS.get(name, "TEXT" if name in _TEXTS else "N")
        help_text = f"launch.{name}: {field.description}".replace("%", "%%")  # argparse formats it
        parser.add_argument(f"--{_OPTIONS[name]}", metavar=metavar, help=help_text)


def add_sbatch_argument(parser: argparse.ArgumentParser) -> None:
    help_text = "any other sbatch option, e.g. mem=200G or exclusive; may be repeated"
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY[=VALUE]", help=help_text)


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
    """Return the sbatch options of `launch`, by submitit's names. Empty values are left out."""
    values = {name: getattr(launch, name) for name in _RESOURCES if getattr(launch, name)}
    return values | (_requested_gpus(launch) if launch.gpus_per_node else {})


def _requested_gpus(launch: LaunchConfig) -> dict[str, Any]:
    per_task = launch.gpu_option == "gpus-per-task"
    number = launch.gpus_per_node // launch.ntasks_per_node if per_task else launch.gpus_per_node
    kinds = [*(["gpu"] if launch.gpu_option == "gres" else []), *filter(None, [launch.gpu_type])]
    value = ":".join([*kinds, str(number)]) if kinds else number
    return {launch.gpu_option.replace("-", "_"): value}


def refuse_reserved_option(option: str, origin: str) -> None:
    """Raise UserError for an option that the launcher sets, e.g. an array, whose jobs would train in one folder.

    ``option`` is a long sbatch option without its dashes. The message begins with ``origin``.
    """
    meant = _meant_option(option)
    if meant in _FLAG_OF_RESERVED:
        raise UserError(f"{origin} {option} conflicts with the launcher: use {_FLAG_OF_RESERVED[meant]}")
    if meant in _RESERVED:
        raise UserError(f"{origin} {option} is set by the launcher: leave it out")
    _full_name(option, origin)


def run_options(options: Mapping[str, str | None], origin: str) -> Options:
    """Return the further sbatch options of a run. The message begins with ``origin``.

    Raises:
        UserError: an option is one of the launcher's, under any of its spellings, or has no value.
    """
    values: Options = {}
    for option, text in options.items():
        refuse_reserved_option(option, origin)
        if option == "gres" and text and re.search(r"(^|,)(gres/)?gpu\b", text):
            raise UserError(f"{origin} gres={excerpt(text)} requests GPUs: use {_GPUS}")
        values[option] = _value(option, text, origin)
    return {option: value for option, value in values.items() if value is not False}


def _meant_option(option: str) -> str:
    """Return the option that sbatch takes ``option`` for: the one with this short name, old name or beginning."""
    name = _OTHER_NAMES.get(option, option)
    longer = [known for known in (*_KNOWN, *_OTHER_NAMES) if known.startswith(name)]
    return _OTHER_NAMES.get(longer[0], longer[0]) if name not in _KNOWN and len(longer) == 1 else name


def _full_name(option: str, origin: str) -> str:
    """Return ``option``, or raise UserError if sbatch reads it as another name of an option."""
    if option in _KNOWN:
        return option
    meant = [_OTHER_NAMES[option]] if option in _OTHER_NAMES else []
    longer = meant or sorted(name for name in (*_KNOWN, *_OTHER_NAMES) if option and name.startswith(option))
    if longer:
        raise UserError(f"{origin} {excerpt(option)} is another name of {' or '.join(longer[:3])}: write it in full")
    return option


def _value(option: str, value: str | None, origin: str) -> str | bool:
    """Return the value of an option: True for an option without a value, False to leave the option out."""
    takes_none = option in _FLAGS or option not in _KNOWN
    if not value and not takes_none:
        raise UserError(f"{origin} {option} has no value: write NAME=VALUE, for example mem=200G")
    if takes_none and (not value or value.lower() in _TRUE):
        return True
    return False if takes_none and str(value).lower() in _FALSE else str(value)


def parse_sbatch_options(texts: Iterable[str]) -> Options:
    """Parse the values of ``--sbatch KEY[=VALUE]`` for a run. Raises UserError for a reserved option."""
    return run_options(_split(texts), "--sbatch")


def parse_options(texts: Iterable[str]) -> Options:
    """Parse the values of ``--sbatch KEY[=VALUE]``. Raises UserError for a text that cannot be a line of a script."""
    values = {
        _full_name(option, "--sbatch"): _value(option, text, "--sbatch") for option, text in _split(texts).items()
    }
    return {option: value for option, value in values.items() if value is not False}


def _split(texts: Iterable[str]) -> dict[str, str]:
    options = {}
    for text in texts:
        key, _, value = text.removeprefix("--").removeprefix("-").partition("=")
        if len(key) == 1 and key.isalpha():  # in a script, a short option would be read as a long one
            refuse_reserved_option(key, "--sbatch")
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
    directives = [
        f"#SBATCH --{key.replace('_', '-')}" + ("" if value is True else f"={shlex.quote(str(value))}")
        for key, value in options.items()
    ]
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

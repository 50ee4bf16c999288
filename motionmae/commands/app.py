"""Application `motionmae`: find a command, parse its arguments, and turn errors into messages and exit statuses.

Only the module of the requested command is imported, and `--help` does not import torch.
"""

import argparse
import difflib
import importlib
import importlib.util
import io
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import motionmae
from motionmae.commands.table import COMMANDS, GUIDE
from motionmae.errors import UserError
from motionmae.outputs import json_with, output_argument
from motionmae.runs.end_reason import LeaseLost, classify_error
from motionmae.text import LINES, say

PROGRAM = (sys.executable, str(Path(motionmae.__file__).resolve().parent))
"""Command line that starts this application, also if it is not installed."""


@dataclass(frozen=True)
class Command:
    """Arguments, work and help text of a command."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str
    epilog: str = ""

    def fill(self, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add the arguments and the help text to ``parser``, and return ``parser``."""
        parser.description, parser.epilog = self.description, self.epilog
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        self.add_arguments(parser)
        return parser


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one sentence, as those of the commands are, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        say(f"error: {message}: {self._remedy(message)}", file=sys.stderr)
        raise SystemExit(2)

    def _remedy(self, message: str) -> str:
        unknown = re.match(r"unrecognized arguments: --?([a-z_]+(?:\.[a-z_]+)*)(?:=| |$)", message)
        known = {option.lstrip("-"): option for action in self._actions for option in action.option_strings}
        if unknown and (close := difflib.get_close_matches(unknown[1], known, n=1)):
            return f"did you mean {known[close[0]]}?"
        if unknown and any(action.dest == "overrides" for action in self._actions):
            key = unknown[1] if "." in unknown[1] else f"SECTION.{unknown[1]}"
            return f"write {key}=VALUE without dashes for a value of the config"
        return f"see `{self.prog} --help`"


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config NAME` and the overrides `key=value`, which may stand before and after options."""
    config = parser.add_argument("--config", required=True, help="name of a config, or path of a YAML file")
    config.completer = complete_config  # type: ignore[attr-defined]  # argcomplete's convention
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a value of the config")


def complete_config(**_: object) -> list[str]:
    """Return the names of the presets for shell completion."""
    from motionmae.config.load import known_configs

    return known_configs()


def add_weights_arguments(parser: argparse.ArgumentParser, model: str = "any model", *, required: bool = True) -> None:
    """Add WEIGHTS, any weights of ``model``, and `--step` of a checkpoint of a run."""
    forms = "a run, a checkpoint, an export, a Hugging Face VideoMAE folder or a released file"
    explained = f"weights of {model}: {forms}"
    parser.add_argument("weights", nargs=None if required else "?", metavar="WEIGHTS", help=explained)
    step_help = "step of the checkpoint of a run, or `best`: the best one by validation (default: the newest)"
    parser.add_argument("--step", type=_step, metavar="STEP", help=step_help)
    changed = "change how the model is used, such as clip.stride=2, or tell what a released file does not"
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="settings", help=changed)


def add_classes_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--classes FILE`, the names of the classes of a classifier."""
    explained = "text file with a name on each line, in the order of the logits, for released files, which name none"
    parser.add_argument("--classes", type=Path, metavar="FILE", help=explained)


def _step(text: str) -> int | str:
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of steps nor `best`")
    return text if text == "best" else int(text)


def add_json_argument(parser: argparse.ArgumentParser, *keys: str, content: str = "figures") -> None:
    """Add `--json FILE`. An existing FILE is replaced only if its objects have all ``keys``, as this command's have."""
    kind = output_argument(json_with(*keys))
    parser.add_argument("--json", type=kind, metavar="FILE", help=f"also write the {content} as JSON")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of `motionmae` and return its exit status."""
    if "_ARGCOMPLETE" in os.environ:  # the shell requests completions
        import argcomplete

        argcomplete.autocomplete(build_parser(os.environ.get("COMP_LINE", "").split()))
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _run_command(words))


def run(program: Callable[[], int | None]) -> int:
    """Run ``program`` and return its exit status.

    A UserError is one sentence on standard error, and the text of a KeyboardInterrupt replaces "interrupted". A closed
    standard output (`| head`) ends the program silently with the shell's status for SIGPIPE. Unexpected errors keep
    their traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # rich and argparse print to it as well
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may have another encoding than UTF-8
    try:
        status = program() or 0
        sys.stdout.flush()
        return status
    except (UserError, LeaseLost) as error:
        if not (isinstance(error, UserError) and error.already_reported):
            say(f"error: {error}", file=sys.stderr)
        return classify_error(error).exit_code
    except KeyboardInterrupt as error:
        say(str(error) or "interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
            return 128 + signal.SIGPIPE
        say(traceback.format_exc(), sys.stderr, keep=LINES, end="")
        return classify_error(error).exit_code


def _stdout_is_closed() -> bool:
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # reports errors only
        return bool(poll.poll(0))
    return False


def _run_command(words: list[str]) -> int:
    if not words:
        say(f"MotionMAE {motionmae.__version__}: {GUIDE}", keep=LINES, end="")
        return 0
    _check_neighbours()
    command, arguments = parse(words)
    return command.run(arguments)


def parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Return the command that ``argv`` begins with, and its arguments; their `argv` holds the words after the command.

    Raises:
        UserError: the command is unknown.
        SystemExit: an argument is wrong, or asks for help; argparse has printed a message.
    """
    name = _name_of(argv)
    if name is None:
        build_parser(argv).parse_args(argv)
        raise AssertionError("argparse exits if the command is missing")
    command = load_command(name)
    parser = command.fill(Parser(prog=f"motionmae {name}"))
    words = list(argv[len(name.split()) :])
    intermixed = any(action.dest == "overrides" for action in parser._actions)
    arguments = parser.parse_intermixed_args(words) if intermixed else parser.parse_args(words)
    arguments.argv = words
    return command, arguments


def _name_of(argv: Sequence[str]) -> str | None:
    """Return the name of the command that ``argv`` begins with; None if argparse must answer."""
    for length in (2, 1):
        if (name := " ".join(argv[:length])) in COMMANDS:
            return name
    first = argv[0]
    if not first.startswith("-") and first not in {name.split()[0] for name in COMMANDS}:
        known = {name.split()[-1]: name for name in COMMANDS} | {name.split()[0]: name.split()[0] for name in COMMANDS}
        close = difflib.get_close_matches(first, known, n=1)
        mean = f"did you mean `motionmae {known[close[0]]}`? " if close else ""
        raise UserError(f"unknown command {first!r}: {mean}`motionmae --help` lists all commands")
    return None


def load_command(name: str) -> Command:
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), attribute or "COMMAND")
    assert isinstance(command, Command)
    return command


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of all commands. Only the commands named in ``words`` have their arguments."""
    parser = Parser(
        prog="motionmae",
        description="Self-supervised video pre-training with motion-aware masked autoencoders.",
        epilog="`motionmae` alone prints the steps from videos to a tested model. Shell completion: add\n"
        '`eval "$(register-python-argcomplete motionmae)"` to ~/.bashrc.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and the git revision")
    groups = {"": parser.add_subparsers(metavar="COMMAND", required=True)}
    for name, entry in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            made = groups[""].add_parser(group, help=entry.group)
            groups[group] = made.add_subparsers(metavar="COMMAND", required=True)
        leaf = groups[group].add_parser(last, help=entry.summary)
        if set(name.split()) <= set(words):
            load_command(name).fill(leaf)
    return parser


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from motionmae.runs.git_revision import git_revision

        plain, revision = f"motionmae {motionmae.__version__}", git_revision()
        say(plain if revision == plain else f"{plain} (git {revision})")
        parser.exit()


def _check_neighbours() -> None:
    """Raise UserError if other packages shadow data_tools, monitoring or slurm, which are common names."""
    root = Path(motionmae.__file__).resolve().parents[1]
    for name in ("data_tools", "monitoring", "slurm"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parents[1] != root:
            found = f"is {origin}" if origin else "is missing"
            remedy = "install motionmae into a virtual environment without other packages of that name"
            raise UserError(f"the package `{name}` of MotionMAE {found}, but must be in {root}: {remedy}")

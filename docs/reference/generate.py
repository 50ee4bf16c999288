"""Write commands.md and config.md of this folder from the program's own parsers and config schema.

Usage: python docs/reference/generate.py    # after a change of an option or a config key
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill

from motionmae.commands.app import load_command
from motionmae.commands.table import COMMANDS
from motionmae.config import Config
from motionmae.config.section import Section, marks_of

HERE = Path(__file__).resolve().parent
_COMMANDS = """\
# Commands

Generated: `python docs/reference/generate.py`. `motionmae COMMAND --help` prints the same and examples. The exit status
is 0 after success, 2 after an error that one sentence explains, and 1 after an error in the program.
"""
_KEYS = """\
# Config keys

Generated: `python docs/reference/generate.py`. A run is one YAML file, and `section.key=value` on the command line
changes a value. `motionmae config show NAME --changed` prints what differs from these defaults. A *fixed* key cannot
change when a run resumes.
"""


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {"commands.md": "\n".join(_commands()), "config.md": "\n".join(_keys())}


def _commands() -> Iterator[str]:
    yield _COMMANDS
    for name in COMMANDS:
        parser = load_command(name).fill(argparse.ArgumentParser(prog=f"motionmae {name}"))
        summary = (parser.description or "").strip().partition("\n\n")[0].replace("\n", " ")
        yield f"## motionmae {name}\n\n{fill(summary, 120)}\n\n| argument | meaning |\n|---|---|"
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction):
                yield f"| `{_usage(action)}` | {_cell(_help(parser, action))} |"
        yield ""


def _usage(action: argparse.Action) -> str:
    """Return an argument as it is typed, for example ``--top-k N`` or ``VIDEO ...``."""
    metavar = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    value = "" if action.nargs == 0 else f"{value} ..." if action.nargs in ("*", "+") else value
    option = max(action.option_strings, key=len, default="")
    return f"{option} {value}".strip().replace("|", "\\|")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return text + (" (required)" if action.required and action.option_strings else "")


def _keys() -> Iterator[str]:
    yield _KEYS
    yield from _section(Config, "", {key for key, marks in marks_of(Config).items() if "on_resume" not in marks})


def _section(section: type[Section], prefix: str, fixed: set[str]) -> Iterator[str]:
    """Yield the table of a section's own keys, then the sections in it."""
    if prefix:
        yield f"## {prefix.removesuffix('.')}\n\n{fill(_cell(section.__doc__), 120)}\n"
    yield "| key | default | meaning |\n|---|---|---|"
    inner: list[tuple[str, type[Section]]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner.append((f"{prefix}{name}.", field.annotation))
            continue
        meaning = _cell(field.description) + (" *Fixed.*" if f"{prefix}{name}" in fixed else "")
        yield f"| `{prefix}{name}` | `{json.dumps(field.get_default(call_default_factory=True))}` | {meaning} |"
    yield ""
    for inner_prefix, inner_section in inner:
        yield from _section(inner_section, inner_prefix, fixed)


def _cell(text: str | None) -> str:
    """Return a docstring or help text as a cell of a Markdown table."""
    return " ".join((text or "").split()).replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    for file_name, content in pages().items():
        (HERE / file_name).write_text(content)

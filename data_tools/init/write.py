"""Write the recipes of `motionmae init` as commented YAML files."""

import json
from collections.abc import Iterable
from pathlib import Path

from data_tools.init.choices import Choice, Recipe
from motionmae.config import load_config
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.text import printable

_SECTIONS = ("", "finetune", "clip", "model", "data", "test", "optim", "engine", "checkpoint", "log", "validation",
             "launch")  # fmt: skip


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raise UserError if a file exists, because a user may have changed it."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists: move it away, or give another --name")


def write_recipe(path: Path, recipe: Recipe, heading: str) -> None:
    """Write a config, and check that it loads."""
    write_atomically(path, to_yaml(recipe, heading).encode())
    load_config(str(path))


def to_yaml(recipe: Recipe, heading: str) -> str:
    lines = [*(f"# {printable(line)}" for line in heading.splitlines()), f"base: {recipe.base}"]
    for section in _SECTIONS:
        choices = [choice for choice in recipe.choices if choice.key.rpartition(".")[0] == section]
        lines += [f"{section}:"] if section and choices else []
        indent = "  " if section else ""
        lines += [f"{indent}{_line(choice.key.rpartition('.')[2], choice)}" for choice in choices]
    return "\n".join(lines) + "\n"


def _line(name: str, choice: Choice) -> str:
    value = json.dumps(choice.value, ensure_ascii=False)
    if isinstance(choice.value, str) and choice.value.replace("/", "").replace("_", "").replace("-", "").isalnum():
        value = choice.value
    return f"{name}: {value}  # {printable(choice.why)}"

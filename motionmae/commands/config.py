"""`motionmae config`: list, show and compare configurations, and print their JSON schema."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motionmae.commands import app
from motionmae.config import Config, load_config
from motionmae.config.differences import differences
from motionmae.config.load import CONFIG_FOLDER, known_configs
from motionmae.config.trees import merge, nest, to_yaml
from motionmae.text import LINES, say

_EPILOG = """\
examples:
  motionmae config list
  motionmae config show vitl_k400 optim.epochs=800 --changed
  motionmae config diff vitb_k400 vitl_k400
  motionmae config diff vitb_k400 runs/vitb_k400
  motionmae config schema > motionmae.schema.json

Editors with a YAML language server use the schema to complete and explain keys, if a config begins with
# yaml-language-server: $schema=motionmae.schema.json"""
_CONFIG = "name of a config, path of a YAML file, or run folder"


def _load(name: str, overrides: Sequence[str] = ()) -> Config:
    saved = Path(name) / "config.yaml"
    return load_config(str(saved) if saved.is_file() else name, overrides)


def list_configs(arguments: argparse.Namespace) -> int:
    """Print the name of every config, with the comment in its first line."""
    names = known_configs()
    width = max(map(len, names), default=0)
    for name in names:
        first = (CONFIG_FOLDER / f"{name}.yaml").read_text().partition("\n")[0]
        say(f"{name:{width}}  {first.removeprefix('# ') if first.startswith('#') else ''}".rstrip())
    return 0


def show(arguments: argparse.Namespace) -> int:
    config = _load(arguments.config, arguments.overrides)
    tree = _changed(config) if arguments.changed else config.model_dump(mode="json")
    say(to_yaml(tree), keep=LINES, end="")
    return 0


def _changed(config: Config) -> dict[str, Any]:
    """Return the values of ``config`` that differ from the defaults, as a tree."""
    changed: dict[str, Any] = {}
    for key, (value, _) in differences(config, Config()).items():
        changed = merge(changed, nest(key, value))
    return changed


def diff(arguments: argparse.Namespace) -> int:
    """Print the keys in which two configurations differ. Return 1 if there are any, as `diff` does."""
    differing = differences(_load(arguments.a), _load(arguments.b))
    differing.pop("name", None)
    width = max(map(len, differing), default=0)
    for key, (a, b) in differing.items():
        say(f"{key:{width}}  {json.dumps(a)} -> {json.dumps(b)}")
    return 1 if differing else 0


def schema(arguments: argparse.Namespace) -> int:
    described = Config.model_json_schema()
    described["properties"]["base"] = {"type": "string", "description": "Config whose values this file inherits."}
    say(json.dumps(described, indent=1), keep=LINES)
    return 0


def _add_show_arguments(parser: argparse.ArgumentParser) -> None:
    name = parser.add_argument("config", metavar="NAME", help=_CONFIG)
    name.completer = app.complete_config  # type: ignore[attr-defined]
    app.add_overrides(parser)
    parser.add_argument("--changed", action="store_true", help="print only values that are not the default")


def _add_diff_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help=_CONFIG)


LIST = app.Command(lambda parser: None, list_configs, "List the configs that come with the code.", _EPILOG)
SHOW = app.Command(_add_show_arguments, show, "Print a config with all inherited and default values.", _EPILOG)
DIFF = app.Command(_add_diff_arguments, diff, "Print the values that differ. Exit status 1 if any do.", _EPILOG)
SCHEMA = app.Command(lambda parser: None, schema, "Print the JSON schema of a config file.", _EPILOG)

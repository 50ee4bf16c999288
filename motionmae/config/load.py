"""Load a configuration from layers: defaults < YAML with inheritance < site file < ``key=value`` overrides."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from motionmae.config.refusals import describe_refusal
from motionmae.config.schema import Config
from motionmae.config.section import marks_of
from motionmae.config.site import Site
from motionmae.config.text_types import check_path, one_line
from motionmae.config.trees import DEEPEST_TREE, merge, nest, parse_yaml, read_yaml, to_yaml
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.text import excerpt

_ENDINGS = (".yaml", ".yml")
_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "presets"

CONFIG_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
"""Folder of the presets: in the installed package, or in a checkout."""


_Layer = tuple[dict[str, Any], str]
"""Settings and their origin, as messages name it: a file or an override."""


def load_config(name: str, overrides: Sequence[str] = (), site: Site | None = None) -> Config:
    """Return the checked configuration called ``name``, changed by the site file and by ``overrides``.

    Args:
        name: a preset (``vitl_k400``, ``ablations/table5a_motion``), or the path of a YAML file.
        overrides: ``section.key=value`` each, the value in YAML's notation.
        site: its ``launch`` section wins over the file's, and overrides win over both.

    Raises:
        UserError: a config or key is unknown, a type is wrong, or values do not fit together.
    """
    path = _find(name)
    layers = [({"name": path.stem}, str(path)), *_file_layers(path)]
    if site and site.launch:
        layers.append(({"launch": site.launch}, str(site.file)))
    layers += map(_parse_override, overrides)
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for settings, origin in layers:
        tree = merge(tree, settings)
        origins |= dict.fromkeys(_nodes(settings), origin)
    tree["name"] = tree["name"] or path.stem
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        source = f"config {' '.join([name, *overrides])}"
        raise UserError(describe_refusal(error, Config, tree, origins, source)) from error


def refuse_unused(config: Config, overrides: Sequence[str]) -> None:
    """Raise UserError if an override changes a section that a run of this task does not read."""
    tasks = {key.partition(".")[0]: marks["task"] for key, marks in marks_of(Config).items() if "task" in marks}
    for text in overrides:
        section = text.partition(".")[0]
        if tasks.get(section, config.task) != config.task:
            reason = f"task {config.task} does not use the section {section}"
            raise UserError(f"{text} would change nothing: {reason}; leave it out")


def save_config(config: Config, path: Path) -> None:
    """Write all of ``config``; :func:`load_config` reads it back without the files it came from."""
    write_atomically(path, config_yaml(config).encode())


def saved_config(path: Path) -> Config | None:
    """Return the config that :func:`save_config` wrote; None if the file is absent or cannot be read."""
    try:
        return load_config(str(path)) if path.is_file() else None
    except UserError:
        return None


def config_yaml(config: Config) -> str:
    return to_yaml(config.model_dump(mode="json"))


def known_configs() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.relative_to(CONFIG_FOLDER).with_suffix("").as_posix() for path in CONFIG_FOLDER.rglob("*.yaml"))


def _find(name: str) -> Path:
    _refuse_impossible(name, f"--config {excerpt(name)}")
    for path in (Path(name), CONFIG_FOLDER / f"{name}.yaml"):
        if path.suffix in _ENDINGS and path.is_file():
            return path
    known = known_configs()
    close = difflib.get_close_matches(name, known, n=3)
    mean = f"did you mean {' or '.join(close)}?" if close else ""
    if Path(name).suffix in _ENDINGS or ("/" in name and not close):
        hint = mean or f"the configs that come with the code are in {CONFIG_FOLDER}"
        raise UserError(f"there is no YAML file {name!r}: {hint}")
    if not known:
        raise UserError(f"unknown config {name!r}, and {CONFIG_FOLDER} holds no configs: give the path of a YAML file")
    hint = mean or f"choose one of {', '.join(name for name in known if '/' not in name)}, or a config in its folders"
    raise UserError(f"{CONFIG_FOLDER} has no config {name!r}: {hint}")


def _refuse_impossible(path: str, where: str) -> None:
    try:
        check_path(one_line(path), "local")
    except ValueError as error:
        raise UserError(f"{where} is not possible: {error}") from None


def _file_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[_Layer]:
    """Return the layers of the file's bases, the lowest base first, and of the file itself."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(each.name for each in (*seen, path))
        raise UserError(f"{path}: `base:` leads back to the file: remove a link of {chain}")
    if len(seen) > DEEPEST_TREE:
        raise UserError(f"{seen[0]} has more than {DEEPEST_TREE} bases: copy their values into one file")
    tree = read_yaml(path)
    base = tree.pop("base", None)
    layers = _file_layers(_base_of(path, str(base)), (*seen, resolved)) if base else []
    return [*layers, (tree, str(path))]


def _base_of(path: Path, base: str) -> Path:
    """Find the config that ``base:`` names, in ``path``'s folder or among the presets. The extension is optional."""
    _refuse_impossible(base, f"{path}: `base: {excerpt(base)}`")
    name = base if base.endswith(_ENDINGS) else f"{base}.yaml"
    candidates = [(folder / Path(name).expanduser()).resolve() for folder in (path.parent, CONFIG_FOLDER)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    missing = " or ".join(dict.fromkeys(map(str, candidates)))
    raise UserError(f"{path}: the config of `base: {base}` does not exist: create {missing}, or correct `base:`")


def _parse_override(text: str) -> _Layer:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{excerpt(text)!r} is not section.key=value: write for example optim.global_batch_size=256")
    if key.count(".") > DEEPEST_TREE:
        raise UserError(f"{excerpt(text)!r} names a section in more than {DEEPEST_TREE} sections: correct the key")
    try:
        return nest(key, parse_yaml(value) if value.strip() else ""), text
    except yaml.YAMLError as error:
        raise UserError(f"{excerpt(text)!r} is not section.key=value: the value is not readable YAML") from error


def _nodes(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every section and key of ``tree``."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _nodes(value, f"{prefix}{key}.")

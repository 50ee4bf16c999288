"""YAML with inheritance, then ``key=value`` overrides, then the schema: every refusal names the key and the remedy."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

from motionmae.config.schema import Config
from motionmae.errors import UserError

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple[float, float]: "a list of two numbers",
}
"""Types of the schema's fields, as messages call them."""

_IDLE = {"pretrain": ("finetune", "test"), "finetune": ("mask", "target")}
"""Sections of the other task."""

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Return the checked configuration called ``name``, changed by ``overrides``.

    Args:
        name: a file below ``configs/`` without its ending (``vitl_k400``, ``ablations/table5a_motion``), or the path
            of a YAML file.
        overrides: ``section.key=value`` each, the value in YAML's notation.

    Raises:
        UserError: for an unknown config or key, a wrong type, or a combination that is not possible.
    """
    path = _find(name)
    merged = OmegaConf.structured(Config)
    for layer, origin in (*_layers(path), *((_parse_override(text), text) for text in overrides)):
        merged = _merge(merged, layer, origin)
    try:
        config = OmegaConf.to_object(merged)
    except UserError as error:
        raise UserError(f"{error} (config {' '.join([name, *overrides])})") from error
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise UserError(f"{error.full_key}: {_first_line(error)} (config {' '.join([name, *overrides])})") from error
    assert isinstance(config, Config)
    return config if config.name else replace(config, name=path.stem)


def refuse_idle(config: Config, overrides: Sequence[str]) -> None:
    """Refuse what somebody has asked for of a run and the run would not look at.

    Raises:
        UserError: an override belongs to the other task.
    """
    for text in overrides:
        section = text.partition(".")[0]
        if section in _IDLE[config.task]:
            raise UserError(
                f"{text} would change nothing, a run to {config.task} does not look at {section}: leave it out"
            )


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` whole, so that :func:`load_config` gives it back without the files it was made of."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(_plain(asdict(config)))))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _plain(value: Any) -> Any:
    """YAML knows lists, not tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.key``."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def known_configs() -> list[str]:
    """Names that :func:`load_config` takes."""
    return sorted(str(path.relative_to(CONFIG_FOLDER).with_suffix("")) for path in CONFIG_FOLDER.rglob("*.yaml"))


def _find(name: str) -> Path:
    for path in (Path(name), CONFIG_FOLDER / f"{name}.yaml"):
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
    known = known_configs()
    close = difflib.get_close_matches(name, known, n=3)
    mean = f"did you mean {' or '.join(close)}?" if close else ""
    if Path(name).suffix in (".yaml", ".yml") or ("/" in name and not close):
        hint = mean or f"the names of those that there are lie in {CONFIG_FOLDER}"
        raise UserError(f"no config {name!r}: there is no such YAML file; {hint}")
    runs = [name for name in known if "/" not in name]
    hint = mean or f"there are {', '.join(runs)}, and more in its folders"
    raise UserError(f"no config {name!r} in {CONFIG_FOLDER}: {hint}")


def _layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[DictConfig, str]]:
    """The file's bases, furthest first, and the file itself, each with the name it goes by in messages."""
    if path in seen:
        raise UserError(f"{path}: its `base:` leads back to itself ({' -> '.join(p.name for p in (*seen, path))})")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # YAML's own errors share no base class with OmegaConf's
        raise UserError(f"{path} is not readable YAML: {_yaml_problem(error)}") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path} must hold `section: key: value` pairs, not a list or a single value")
    base = layer.pop("base", None)
    if base is None:
        return [(layer, str(path))]
    places = [(folder / f"{base}.yaml").resolve() for folder in (path.parent, CONFIG_FOLDER)]
    base_path = next((place for place in places if place.is_file()), None)
    if base_path is None:
        looked = " and ".join(dict.fromkeys(map(str, places)))
        raise UserError(f"{path}: base: {base} is not there (looked for {looked})")
    return [*_layers(base_path, (*seen, path.resolve())), (layer, str(path))]


def _parse_override(text: str) -> DictConfig:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(
            f"{text!r} is not an override: write section.key=value, for example optim.global_batch_size=256"
        )
    if not value.strip():
        text = f"{key}=''"  # YAML would make it null, which no field takes
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # as in _layers
        raise UserError(f"{text!r} is not an override: its value is not readable YAML") from error


def _merge(config: DictConfig, layer: DictConfig, origin: str) -> DictConfig:
    try:
        merged = OmegaConf.unsafe_merge(config, layer)
    except ConfigKeyError as error:
        raise UserError(_unknown_key(str(error.full_key), origin)) from error
    except OmegaConfBaseException as error:
        key, value = _refused(config, layer)
        raise UserError(f"{key}={value} is not possible: {_allowed(key)} (from {origin})") from error
    assert isinstance(merged, DictConfig)
    return merged


def _refused(config: DictConfig, layer: DictConfig) -> tuple[str, Any]:
    """The first key of ``layer``, and its value, that cannot be merged; not every error of OmegaConf names it."""
    for section, content in layer.items():
        is_section = isinstance(config[section], DictConfig) and isinstance(content, DictConfig)
        for key, value in content.items() if is_section else (("", content),):
            try:
                OmegaConf.merge(config, {section: {key: value} if key else value})
            except OmegaConfBaseException:
                return f"{section!s}.{key!s}" if key else str(section), value
    raise AssertionError(f"every key of {layer} fits alone")


def _allowed(key: str) -> str:
    """What a key of the schema takes, in words."""
    schema: Any = Config
    for name in key.split("."):
        schema = next(item.type for item in fields(schema) if item.name == name)
    if is_dataclass(schema):
        return f"it is a section: write {key}.{fields(schema)[0].name}=..."
    return f"it must be {_WORDS[schema]}"


def _unknown_key(key: str, origin: str) -> str:
    known = _keys(Config)
    section = key.rpartition(".")[0]
    siblings = [k for k in known if section and k.rpartition(".")[0] == section] or [f.name for f in fields(Config)]
    last = key.rpartition(".")[2]
    names = {sibling.rpartition(".")[2]: sibling for sibling in siblings}
    words = {word: sibling for name, sibling in names.items() for word in name.split("_")}
    close = [(words | names)[found] for found in difflib.get_close_matches(last, [*names, *words], n=1, cutoff=0.75)]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(siblings)}"
    return f"unknown key {key} (from {origin}): {remedy}"


def _keys(schema: type, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for item in fields(schema):
        if is_dataclass(item.type) and isinstance(item.type, type):
            keys += _keys(item.type, f"{prefix}{item.name}.")
        else:
            keys.append(f"{prefix}{item.name}")
    return keys


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _yaml_problem(error: Exception) -> str:
    """What is wrong and in which line; the first line of YAML's own message says only what it was reading."""
    if not isinstance(error, MarkedYAMLError) or error.problem is None or error.problem_mark is None:
        return _first_line(error)
    begun = error.context_mark
    since = f" (in what begins in line {begun.line + 1})" if begun and begun.line != error.problem_mark.line else ""
    return f"{error.problem} in line {error.problem_mark.line + 1}{since}"

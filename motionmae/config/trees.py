"""Nested settings as dictionaries, as YAML, and by ``section.key``.

Scalars of YAML stay strings, because the schema knows the type of every value. YAML 1.1 would read ``1e-4`` as a
string, ``off`` as false and ``007`` as a number.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from motionmae.errors import UserError
from motionmae.json_text import read_limited
from motionmae.text import excerpt

LARGEST_FILE, LARGEST_TREE, DEEPEST_TREE = 1_000_000, 10_000, 20
"""Bytes of a YAML file, and values and levels in it."""
_TOO_DEEP = yaml.YAMLError(f"it is nested more than {DEEPEST_TREE} levels deep")


class _StringLoader(yaml.BaseLoader):
    """Loader of strings, lists, mappings and null. It refuses duplicate keys, and YAML tags create no objects."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "null":
                raise yaml.constructor.ConstructorError(None, None, "found a key that is no name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StringLoader.add_implicit_resolver("null", yaml.resolver.re.compile("^(?:~|null|)$"), ["~", "n", ""])
_StringLoader.add_constructor("null", lambda loader, node: None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the file ``path``. Raises UserError if the file is unreadable or not a mapping."""
    try:
        tree = parse_yaml(read_limited(path, LARGEST_FILE).decode())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{excerpt(path)} is not readable YAML: {excerpt(_problem(error))}") from error
    if not isinstance(tree, dict | None):
        raise UserError(f"{path} must map sections to keys, not hold a list or a single value: write `key: value`")
    return tree or {}


def parse_yaml(text: str) -> Any:
    """Parse one YAML document, or raise yaml.YAMLError, also for one that is too deep or too large to be a config."""
    try:
        tree = yaml.load(text, _StringLoader)
    except RecursionError:
        raise _TOO_DEEP from None
    _check_extent(tree)
    return tree


def _check_extent(tree: Any) -> None:
    """Raise yaml.YAMLError for a tree that grows beyond measure or holds itself: an anchor may be used many times."""
    waiting, count = [(tree, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > LARGEST_TREE:
            raise yaml.YAMLError(f"it has more than {LARGEST_TREE} values")
        if depth > DEEPEST_TREE:
            raise _TOO_DEEP
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(child, depth + 1) for child in children]


def to_yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _problem(error: Exception) -> str:
    """Return the problem and its line. The first line of YAML's own message only names the context."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None or error.problem_mark is None:
        return str(error).strip().partition("\n")[0]
    line, context = error.problem_mark.line, error.context_mark
    block = f" (in the block that begins in line {context.line + 1})" if context and context.line != line else ""
    return f"{error.problem} in line {line + 1}{block}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of ``tree`` by ``section.key``."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return the tree that holds only ``value``, at ``section.key``."""
    section, _, rest = key.partition(".")
    return {section: nest(rest, value) if rest else value}


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of both trees; ``upper`` wins."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged

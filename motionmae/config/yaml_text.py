"""YAML whose scalars stay texts: the schema knows the type of every value.

YAML 1.1 itself would read ``1e-4`` as a text, ``off`` as false and ``007`` as a number.
"""

from pathlib import Path
from typing import Any

import yaml

from motionmae.errors import UserError


class _TextLoader(yaml.BaseLoader):
    """A loader of texts, lists, mappings and null that refuses duplicate keys. YAML tags create no objects."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_TextLoader.add_implicit_resolver("null", yaml.resolver.re.compile("^(?:~|null|)$"), ["~", "n", ""])
_TextLoader.add_constructor("null", lambda loader, node: None)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file ``path``.

    Raises:
        UserError: the file cannot be read, or is not a mapping.
    """
    try:
        tree = parse_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML: {_problem(error)}") from error
    if not isinstance(tree, dict | None):
        raise UserError(
            f"{path} must map sections to keys, not hold a list or a single value: write each key below its section"
        )
    return tree or {}


def parse_yaml(text: str) -> Any:
    """Parse one YAML document, or raise yaml.YAMLError."""
    return yaml.load(text, _TextLoader)


def to_yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _problem(error: Exception) -> str:
    """Problem and its line; the first line of YAML's own message only names the context."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None or error.problem_mark is None:
        return str(error).strip().splitlines()[0]
    begun = error.context_mark
    since = (
        f" (in the block that begins in line {begun.line + 1})"
        if begun and begun.line != error.problem_mark.line
        else ""
    )
    return f"{error.problem} in line {error.problem_mark.line + 1}{since}"

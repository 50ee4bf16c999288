"""Site file: settings of a cluster that every submission shares (docs/survival.md has an example)."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from motionmae.config.refusals import describe_refusal
from motionmae.config.section import Section
from motionmae.config.trees import read_yaml
from motionmae.errors import UserError

DEFAULT = Path("~/.config/motionmae/site.yaml")


def _matching(pattern: str, expected: str) -> AfterValidator:
    def check(name: str) -> str:
        if not re.fullmatch(pattern, name):
            raise ValueError(f"write {expected}")
        return name

    return AfterValidator(check)


Option = Annotated[str, _matching("[a-z][a-z-]*", "a long option of sbatch, such as mem")]
Variable = Annotated[str, _matching(r"[A-Za-z_]\w*", "a variable's name, such as NCCL_DEBUG")]


class _Contents(Section):
    launch: dict[str, Any] = Field(default_factory=dict)
    """Values of :class:`motionmae.config.LaunchConfig`, which :func:`motionmae.config.load_config` checks."""
    sbatch: dict[Option, str] = Field(default_factory=dict)
    """Other long options of sbatch."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables of every rank."""


class Site(_Contents):
    """Contents and path of a site file."""

    file: Path | None = None
    """Path for messages."""


def load_site(path: Path | None) -> Site:
    """Read the site file ``path``, or the default file if it exists. Raises UserError with file and key."""
    file = (path or DEFAULT).expanduser()
    if not file.is_file():
        if path is None:
            return Site()
        raise UserError(f"--site {file} does not exist: create the file, or leave out --site")
    tree = read_yaml(file)
    try:
        return Site(**dict(_Contents.model_validate(tree)), file=file)
    except ValidationError as error:
        raise UserError(f"{file}: {describe_refusal(error, _Contents, tree)}") from error

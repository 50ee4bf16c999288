"""Site file: settings that every submission to a cluster needs.

::

    # ~/.config/motionmae/site.yaml, or the file given with --site
    launch:                    # any key of the section `launch` of a config
      partition: gpu
      account: vision
      gpus_per_node: 4
      ntasks_per_node: 4
    sbatch:                    # any other long option of sbatch
      mem: 400G
    environment:               # variables of every rank
      NCCL_SOCKET_IFNAME: ib0

Precedence: config file < site file < command line (``key=value`` and flags).
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from motionmae.config.refusals import describe_refusal
from motionmae.config.section import Section
from motionmae.config.yaml_text import read_yaml
from motionmae.errors import UserError

DEFAULT = Path("~/.config/motionmae/site.yaml")


def _matches(name: str, pattern: str, kind: str) -> str:
    if not re.fullmatch(pattern, name):
        raise ValueError(f"it is not {kind}")
    return name


Option = Annotated[str, AfterValidator(lambda name: _matches(name, "[a-z][a-z-]*", "a long option of sbatch"))]
Variable = Annotated[str, AfterValidator(lambda name: _matches(name, r"[A-Za-z_]\w*", "the name of a variable"))]


class _Contents(Section):
    launch: dict[str, Any] = Field(default_factory=dict)
    """Values of :class:`motionmae.config.LaunchConfig`, which :func:`motionmae.config.load_config` checks."""
    sbatch: dict[Option, str] = Field(default_factory=dict)
    """Long options of sbatch."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables of every rank."""


class Site(_Contents):
    """A site file."""

    file: Path | None = None
    """Its path, for messages."""


def load_site(path: Path | None) -> Site:
    """Read the site file ``path``; None reads the default file, if it exists.

    Raises:
        UserError: the file is missing or holds settings that cannot be used; the message names file and key.
    """
    file = (path or DEFAULT).expanduser()
    if not file.is_file():
        if path is None:
            return Site()
        raise UserError(f"--site {file}: there is no such file")
    tree = read_yaml(file)
    try:
        return Site(**dict(_Contents.model_validate(tree)), file=file)
    except ValidationError as error:
        raise UserError(f"{file}: {describe_refusal(error, _Contents, tree)}") from error

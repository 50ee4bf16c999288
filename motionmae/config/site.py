"""Site file: settings of a cluster that every submission shares (docs/operate/site.md has an example)."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from motionmae.config.refusals import describe_refusal
from motionmae.config.section import Section
from motionmae.config.text_types import SbatchOption, SbatchText, Variable, VariableValue
from motionmae.config.trees import read_yaml
from motionmae.errors import UserError

DEFAULT = Path("~/.config/motionmae/site.yaml")


class _Contents(Section):
    launch: dict[str, Any] = Field(default_factory=dict)
    """Values of :class:`motionmae.config.LaunchConfig`, which :func:`motionmae.config.load_config` checks."""
    sbatch: dict[SbatchOption, SbatchText | None] = Field(default_factory=dict)
    """Other long options of sbatch. ``true`` and no value ask for an option that takes none."""
    environment: dict[Variable, VariableValue] = Field(default_factory=dict)
    """Environment variables of every rank. They are written into the job script: no secret belongs here."""


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

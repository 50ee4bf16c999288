"""What a person always asks of their cluster, kept in one small file.

::

    # ~/.config/motionmae/site.yaml, or the file given with --site
    launch:                    # any key of the section `launch` of a config
      partition: gpu
      account: vision
      gpus_per_node: 4
      ntasks_per_node: 4
    sbatch:                    # any further long option of sbatch
      mem: 400G
    environment:               # variables of every rank
      NCCL_SOCKET_IFNAME: ib0

A config's own `launch` section gives way to it; `key=value` and flags on the command line win over it.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from motionmae.config import LaunchConfig
from motionmae.errors import UserError
from slurm.launch_options import refuse_reserved_option

DEFAULT = Path("~/.config/motionmae/site.yaml")
_SECTIONS = ("launch", "sbatch", "environment")


@dataclass(frozen=True)
class Site:
    """A site file."""

    launch: dict[str, Any] = field(default_factory=dict)
    """Keys of :class:`motionmae.config.LaunchConfig`."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Long options of sbatch."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every rank."""

    def overrides(self) -> list[str]:
        """The launch section in the form of the command line."""
        return [f"launch.{key}={json.dumps(value)}" for key, value in self.launch.items()]


def load_site(path: Path | None) -> Site:
    """Read the site file ``path``; None: the default one, if there is one.

    Raises:
        UserError: if it is not there, or holds what cannot be used; the message names file and key.
    """
    file = (path or DEFAULT).expanduser()
    if path is None and not file.is_file():
        return Site()
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except FileNotFoundError as error:
        raise UserError(f"--site {file}: there is no such file") from error
    except Exception as error:  # YAML's own errors share no base class with OmegaConf's
        raise UserError(f"{file} is not readable YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold sections: {', '.join(_SECTIONS)}")
    for section, values in ((str(key), value) for key, value in content.items()):
        if section not in _SECTIONS:
            raise UserError(f"{file}: unknown section {section}: {_hint(section, _SECTIONS)}")
        if not isinstance(values, dict):
            raise UserError(f"{file}: {section} must hold `key: value` pairs")
    options = _texts(file, "sbatch", content.get("sbatch", {}), r"[a-z][a-z-]*")
    for option in options:
        refuse_reserved_option(option, f"{file}: sbatch")
    return Site(
        _launch(file, content.get("launch", {})),
        options,
        _texts(file, "environment", content.get("environment", {}), r"[A-Za-z_]\w*"),
    )


def _launch(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    known = [item.name for item in fields(LaunchConfig)]
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{file}: unknown key launch.{key}: {_hint(str(key), known)}")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(LaunchConfig), {key: value})
            checked[key] = getattr(OmegaConf.to_object(merged), key)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        except OmegaConfBaseException as error:
            raise UserError(f"{file}: launch.{key}: {str(error).splitlines()[0]}") from error
    return checked


def _texts(file: Path, section: str, values: Mapping[str, Any], name: str) -> dict[str, str]:
    for key, value in values.items():
        if not re.fullmatch(name, str(key)):
            raise UserError(f"{file}: {section}.{key} is no name that can be used there")
        if isinstance(value, (dict, list)) or value is None:
            raise UserError(f"{file}: {section}.{key} must be a single value")
    return {str(key): str(value) for key, value in values.items()}


def _hint(key: str, known: "tuple[str, ...] | list[str]") -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"

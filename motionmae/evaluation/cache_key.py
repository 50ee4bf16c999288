"""What the files of a resumable evaluation belong to: what lies in a folder is only ever used for the same again.

::

    FOLDER/identity.json    weights, inputs and settings of everything beside it
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import write_atomically

IDENTITY = "identity.json"


@dataclass(frozen=True)
class CacheKey:
    """Three things that decide the values of an evaluation."""

    weights: str
    """Fingerprint of the model; empty where there is none."""
    inputs: str
    """Which videos: fingerprint of a manifest, or the absolute path of a folder."""
    settings: dict[str, object]
    """All else that changes a value; JSON."""

    @property
    def digest(self) -> str:
        """Short name: another for other weights, inputs or settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def bind(self, folder: Path) -> None:
        """Make ``folder`` and note in it whose it is, or see that it was made for the same.

        Raises:
            UserError: it holds files of something else, or does not say of what.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is no folder: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = json.loads(json.dumps(asdict(self))), read_identity(folder)
        if theirs is None:
            if any(not path.name.startswith(IDENTITY) for path in folder.iterdir()):
                raise UserError(f"{folder} has no {IDENTITY} to say what its files are of: choose another --out")
            write_atomically(folder / IDENTITY, (json.dumps(ours, indent=1) + "\n").encode())
        elif differences := _differences(_flat(theirs), _flat(ours)):
            raise UserError(f"{folder} holds results of another kind ({differences}): choose another --out")


def read_identity(folder: Path) -> dict[str, object] | None:
    """What ``folder`` was made for, with the keys of :class:`CacheKey`; None where it does not say.

    Raises:
        UserError: its note is damaged.
    """
    path = folder / IDENTITY
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another --out, or delete {folder}") from error
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise UserError(f"{path} is damaged (no settings): choose another --out, or delete {folder}")
    return found


def _flat(identity: dict) -> dict[str, object]:
    return {key: identity.get(key) for key in ("weights", "inputs")} | identity["settings"]


def _differences(theirs: dict[str, object], ours: dict[str, object]) -> str:
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    shown = [f"{key}: {_short(key, theirs.get(key))} there, {_short(key, ours.get(key))} here" for key in keys]
    return "; ".join(shown)


def _short(key: str, value: object) -> object:
    return (str(value)[:12] or "none") if key == "weights" else value

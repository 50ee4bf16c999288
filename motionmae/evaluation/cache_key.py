"""Cache key of a resumable evaluation: results are reused only for the same weights, inputs and settings."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import temporary_of, write_atomically

FILE_NAME = "cache_key.json"  # in a folder of results
_OURS = re.compile(temporary_of(re.escape(FILE_NAME)))  # left by a killed writer


@dataclass(frozen=True)
class CacheKey:
    """Key of a folder of results: every input that can change a result."""

    weights: str  # fingerprint of the model; empty without a model
    inputs: str  # fingerprint of a manifest, or absolute path of a folder of videos
    settings: dict[str, object]  # all other settings that can change the result, as JSON values

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def bind(self, folder: Path) -> None:
        """Create ``folder`` with this key. Raise UserError if ``folder`` has another key, or files but no key."""
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is not a folder: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = json.loads(json.dumps(asdict(self))), read_cache_key(folder)
        if theirs is None:
            if any(not _OURS.fullmatch(path.name) for path in folder.iterdir()):
                raise UserError(f"{folder} contains files but no {FILE_NAME}: choose another --out")
            write_atomically(folder / FILE_NAME, (json.dumps(ours, indent=1) + "\n").encode())
        elif theirs != ours:
            raise UserError(
                f"{folder} contains results with another cache key ({_differences(theirs, ours)}): choose another --out"
            )


def read_cache_key(folder: Path) -> dict[str, object] | None:
    """Return the fields of the key of ``folder``, or None without a key. Raise UserError if the key is damaged."""
    path = folder / FILE_NAME
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another --out, or delete {folder}") from error
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise UserError(f"{path} is damaged (no settings): choose another --out, or delete {folder}")
    return found


def _differences(theirs: dict, ours: dict) -> str:
    """Describe the values that differ. Fingerprints of weights are shortened to 12 digits."""
    there, here = (
        {"weights": str(key.get("weights"))[:12] or "none", "inputs": key.get("inputs")} | key["settings"]
        for key in (theirs, ours)
    )
    names = [name for name in there | here if there.get(name) != here.get(name)]
    return "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in names)

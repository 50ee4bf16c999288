"""Writer of the folder of an export. Files that no export wrote, or that were changed since, are never replaced.

``OUT/motionmae.json`` lists the sha256 of each other file of the export. Before files are replaced, it lists their old
and new sha256, so that the next export recognises every file even if this one is killed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motionmae.errors import UserError
from motionmae.files import write_atomically, write_json
from motionmae.json_text import InvalidJsonError, JsonModel, load_json

FACTS = "motionmae.json"
NAMES = frozenset({FACTS, "model.safetensors", "README.md", "config.json", "preprocessor_config.json"})
"""Names of all files that exports of any format write."""

_Hashes = dict[str, list[str]]  # sha256 by file name


class _Facts(JsonModel, extra="ignore"):
    files: _Hashes


def write_export(out: Path, facts: Mapping[str, Any], contents: Mapping[str, bytes]) -> list[Path]:
    """Write the files of an export and its ``facts``, and return the files.

    Raises:
        UserError: ``out`` holds a file of another origin under one of NAMES, a file that was changed since it was
            exported, or an export of another format; or it cannot be written.
    """
    new = {name: [hashlib.sha256(content).hexdigest()] for name, content in contents.items()}
    try:
        old = _check_folder(out, contents)
        out.mkdir(parents=True, exist_ok=True)
        both = {name: [*old.get(name, []), *new[name]] for name in new}
        write_json(out / FACTS, {**facts, "files": both})
        for name, content in contents.items():
            write_atomically(out / name, content)
        write_json(out / FACTS, {**facts, "files": new})
    except OSError as error:
        remedy = "choose a folder that you can write to, on a disk with free space"
        raise UserError(f"--out {out} cannot be written ({error}): {remedy}") from error
    return [out / name for name in (*contents, FACTS)]


def _check_folder(out: Path, contents: Mapping[str, bytes]) -> _Hashes:
    """Return the hashes that an earlier export recorded. Raise UserError if a file is not as an export left it."""
    recorded = _recorded(out / FACTS)
    for name in sorted(NAMES - {FACTS}):
        path = out / name
        if path.is_symlink() or (path.exists() and not _is_recorded(path, recorded.get(name, []))):
            raise UserError(
                f"--out {out} holds a {name} that no export wrote, or that was changed since: choose another "
                "folder, or move the file"
            )
        if path.exists() and name not in contents:
            raise UserError(f"--out {out} holds an export in another format, with {name}: choose another folder")
    return recorded


def _recorded(path: Path) -> _Hashes:
    """Return the hashes in motionmae.json; none if it is absent. Raise UserError if another program wrote it."""
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        if path.is_symlink():
            raise InvalidJsonError("it is a link")
        return load_json(path, _Facts).files
    except InvalidJsonError as error:
        raise UserError(f"{path} was not written by this command ({error}): choose another folder") from error


def _is_recorded(path: Path, digests: list[str]) -> bool:
    if not path.is_file() or not digests:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() in digests

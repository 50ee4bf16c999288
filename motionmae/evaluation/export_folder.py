"""Folder of an export. It may hold other files, such as those of a project, which are never replaced.

``OUT/motionmae.json`` lists the sha256 of every other file of the export, by name. Before files are replaced, it lists
the old and the new sha256 of each. If an export is killed, the next one therefore still recognises every file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, load_json

FACTS = "motionmae.json"
NAMES = frozenset({FACTS, "model.safetensors", "README.md", "config.json", "preprocessor_config.json"})
"""Names of all files that exports of any format write."""

_Hashes = dict[str, list[str]]


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
        _write_facts(out, facts, {name: [*old.get(name, []), *new[name]] for name in new})
        for name, content in contents.items():
            write_atomically(out / name, content)
        _write_facts(out, facts, new)
    except OSError as error:
        remedy = "choose a folder that you can write to, on a disk with free space"
        raise UserError(f"--out {out} cannot be written ({error}): {remedy}") from error
    return [out / name for name in (*contents, FACTS)]


def _write_facts(out: Path, facts: Mapping[str, Any], hashes: _Hashes) -> None:
    write_atomically(out / FACTS, (json.dumps({**facts, "files": hashes}, indent=1) + "\n").encode())


def _check_folder(out: Path, contents: Mapping[str, bytes]) -> _Hashes:
    """Return the hashes that an earlier export recorded. Raise UserError if a file is not as an export left it."""
    recorded = _recorded(out / FACTS)
    for name in sorted(NAMES - {FACTS}):
        path = out / name
        if path.is_symlink() or (path.exists() and not _is_recorded(path, recorded.get(name, []))):
            raise UserError(
                f"--out {out} holds a {name} that is not of this command, or was changed: choose another folder, or "
                "move the file"
            )
        if path.exists() and name not in contents:
            raise UserError(f"--out {out} holds an export in another format, with {name}: choose another folder")
    return recorded


def _recorded(path: Path) -> _Hashes:
    """Return the hashes in motionmae.json, none if it is absent. Raise UserError if the file has another content."""
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        if path.is_symlink():
            raise InvalidJsonError("it is a link")
        content = load_json(path, cast(type[dict[str, Any]], dict))
        files = content["files"]
        return {str(name): [str(digest) for digest in files[name]] for name in files}
    except (InvalidJsonError, LookupError, TypeError) as error:
        raise UserError(f"{path} was not written by this command ({error}): choose another folder") from error


def _is_recorded(path: Path, digests: list[str]) -> bool:
    if not path.is_file() or not digests:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() in digests

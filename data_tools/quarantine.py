"""File ``quarantine.jsonl`` in a folder of shards: one row for each video that could not be stored."""

import json
from collections.abc import Sequence
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, read_limited

QUARANTINE = "quarantine.jsonl"
KEYS = ("path", "reason", "error")
"""Keys of a row, all texts: path of the video within its data set, QuarantineReason, details."""
_LIMIT = 1 << 30  # bytes; a million missing videos take 150 MB


def write_quarantine(folder: Path, rows: Sequence[dict[str, str]]) -> None:
    lines = [json.dumps({name: row[name] for name in KEYS}) + "\n" for row in rows]
    write_atomically(folder / QUARANTINE, "".join(lines).encode())


def read_quarantine(folder: Path) -> bytes:
    """Return the content of a folder's ``quarantine.jsonl``, or nothing if it is absent."""
    try:
        return read_limited(folder / QUARANTINE, _LIMIT)
    except FileNotFoundError:
        return b""
    except InvalidJsonError as error:
        raise UserError(f"{folder / QUARANTINE} cannot be read ({error}): make the shards again") from error


def refuse_foreign_quarantine(folder: Path) -> None:
    """Raise UserError if the folder has a ``quarantine.jsonl`` that make_shards and merge did not write."""
    path = folder / QUARANTINE
    try:
        lines = read_limited(path, _LIMIT).splitlines()
        is_ours = all(_is_row(json.loads(line)) for line in lines)
    except FileNotFoundError:
        return
    except (InvalidJsonError, ValueError, RecursionError):
        is_ours = False
    if not is_ours:
        raise UserError(f"{path} was not written by this program: move it away, or choose another --out")


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and set(row) == set(KEYS) and all(isinstance(text, str) for text in row.values())

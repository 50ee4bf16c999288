"""File ``quarantine.jsonl`` in a folder of shards: one row for each video that could not be stored."""

import json
from collections.abc import Sequence
from pathlib import Path

from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, JsonModel, parse_json, read_limited

QUARANTINE = "quarantine.jsonl"
_LIMIT = 1 << 30  # bytes; a million missing videos take 150 MB


class QuarantineRow(JsonModel):
    """Row of ``quarantine.jsonl``."""

    path: str  # within the data set
    reason: str  # a QuarantineReason
    error: str


KEYS = tuple(QuarantineRow.model_fields)


def write_quarantine(folder: Path, rows: Sequence[dict[str, str]]) -> None:
    lines = [json.dumps({name: row[name] for name in KEYS}) + "\n" for row in rows]
    write_atomically(folder / QUARANTINE, "".join(lines).encode())


def read_quarantine(folder: Path) -> bytes:
    """Return the content of a folder's ``quarantine.jsonl``; empty if the file is absent."""
    try:
        return read_limited(folder / QUARANTINE, _LIMIT)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"{folder / QUARANTINE} cannot be read ({error.strerror}): check its permissions") from error
    except InvalidJsonError as error:
        raise UserError(f"{folder / QUARANTINE} cannot be read ({error}): make the shards again") from error


def refuse_foreign_quarantine(folder: Path) -> None:
    """Raise UserError if the folder has a ``quarantine.jsonl`` that make_shards and merge did not write."""
    path = folder / QUARANTINE
    try:
        for line in read_limited(path, _LIMIT).splitlines():
            parse_json(line, QuarantineRow)
    except FileNotFoundError:
        return
    except InvalidJsonError as error:
        raise UserError(f"{path} was not written by this program: move it away, or choose another --out") from error

"""Parser of untrusted JSON, with a schema and a limit of its size."""

import functools
import os
import re
import stat
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from motionmae.text import excerpt

JSON_LIMIT = 64 << 20
"""Maximum size in bytes, far above that of every JSON file of this project."""

JSON_VALUES = 2_000_000
"""Maximum number of values, estimated from commas and brackets. A parsed value can take a thousand times its text."""

_ESCAPES = re.compile(rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>\\u[dD][89a-fA-F]..)", re.DOTALL)
_MOST_FAULTS = 100  # pydantic copies every fault into Python objects, and hostile documents can have millions
_LONGEST_PLACE = 40  # characters of a key in a message

Schema = TypeVar("Schema")


class InvalidJsonError(ValueError):
    """JSON that is too large, malformed, or does not fit its schema. The text is the middle of a sentence."""


class JsonModel(BaseModel):
    """Base of schemas. Unknown keys are refused; a schema that must skip them sets ``extra="ignore"``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def parse_json(content: bytes, schema: type[Schema], limit: int = JSON_LIMIT) -> Schema:
    """Parse at most ``limit`` bytes of JSON in pydantic's strict mode. ``schema`` is a model, a dataclass or a type.

    Deep nesting, numbers of any length, wrong encodings and wrong types all raise InvalidJsonError. Half a surrogate
    pair, with which json.dumps writes a file name that is not UTF-8, becomes U+FFFD.
    """
    if len(content) > limit:
        raise InvalidJsonError(f"it has more than {limit} bytes")
    if sum(map(content.count, (b",", b"[", b"{"))) > JSON_VALUES:
        raise InvalidJsonError(f"it has more than {JSON_VALUES} values")
    if b"\\ud" in content or b"\\uD" in content:
        content = _ESCAPES.sub(lambda found: rb"\ufffd" if found["lone"] else found[0], content)
    adapter: TypeAdapter[Schema] = _adapter(cast(Any, schema))  # mypy: a type of a type variable has no hash
    try:
        return adapter.validate_json(content, strict=True)
    except ValidationError as error:
        raise InvalidJsonError(describe_fault(error)) from None  # the cause would keep the whole document in memory


def load_json(path: Path, schema: type[Schema], limit: int = JSON_LIMIT) -> Schema:
    """Read and parse a JSON file, see :func:`parse_json`. Raises OSError if the file cannot be read."""
    return parse_json(read_limited(path, limit), schema, limit)


def read_limited(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes. A larger file, a device or a pipe raises InvalidJsonError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would block without it
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidJsonError("it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(min(status.st_size, limit) + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise InvalidJsonError(f"it has more than {limit} bytes")
    return content


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def describe_fault(error: ValidationError) -> str:
    """Return the place of the first fault and pydantic's message, without values of the document."""
    if error.error_count() > _MOST_FAULTS:
        return f"{error.error_count()} of its values are wrong"
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(excerpt(part, _LONGEST_PLACE) for part in fault["loc"])
    unlike = "String should have another form"  # pydantic shows the regular expression
    message = unlike if fault["type"] == "string_pattern_mismatch" else fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message

"""Hypothesis strategies of foreign JSON: any documents, and valid documents in which something was changed."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**32, 2**53, 2**63, 2**64, 2**70, -(2**70), 10**400),
    *(float("nan"), float("inf"), "", "x", "../../x", "a\0b", "\x1b[31m", "caf\udce9", "9" * 5000, "\u202e"),
    *([], [[]], [None], {}, {"": {}}, [0] * 1000, {"name": "x"}),
)


@contextmanager
def refused(*errors: type[Exception]) -> Iterator[None]:
    """Allow one of ``errors`` with a sentence of bounded length, and no other exception."""
    try:
        yield
    except errors as error:
        if len(str(error)) > 2000:
            raise AssertionError(f"a message of {len(str(error))} characters") from error


def documents() -> st.SearchStrategy[bytes]:
    """Any bytes, any JSON, deep nesting and long numbers."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner))
    nested = st.tuples(st.sampled_from([b"[", b'{"a":', b'[{"columns":']), st.integers(1, 100_000))
    return (
        st.binary(max_size=300)
        | values.map(lambda value: json.dumps(value).encode())
        | nested.map(lambda pair: pair[0] * pair[1])
        | st.integers(1, 10_000).map(lambda digits: b'{"format_version": ' + b"9" * digits + b"}")
    )


@st.composite
def mutations(draw: st.DrawFn, document: Any) -> bytes:
    """Return ``document`` as JSON, with one to three values replaced, removed or added, or with changed bytes."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place = changed
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
                break
            place = inner
        else:
            break
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        value = draw(st.sampled_from(ODD_VALUES) | st.integers() | st.floats() | st.text(max_size=9))
        value = copy.deepcopy(value)  # a later change must not reach ODD_VALUES
        if action == "remove":
            del place[key]
        elif action == "replace":
            place[key] = value
        elif isinstance(place, dict):
            place[draw(st.text(max_size=9))] = value
        else:
            place.append(value)
    raw = bytearray(json.dumps(changed).encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)

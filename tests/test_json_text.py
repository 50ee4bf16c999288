import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from motionmae.json_text import InvalidJsonError, JsonModel, load_json, parse_json, read_limited


class Point(JsonModel):
    x: Annotated[int, Field(ge=0, lt=100)]
    scale: float = 1.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    low: int
    high: int


def test_a_document_that_fits_its_schema_is_parsed():
    assert parse_json(b'{"x": 3, "scale": 2, "names": ["a"]}', Point) == Point(x=3, scale=2.0, names=("a",))
    assert parse_json(b'{"low": 1, "high": 2}', Pair) == Pair(1, 2)
    assert parse_json(b"[1, 2]", list[int]) == [1, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"x": ' + b"9" * 5000 + b"}",
        b'{"x": 1e400}',
        b'{"x": 1.0}',
        b'{"x": true}',
        b'{"x": "1"}',
        b'{"x": -1}',
        b'{"x": 1, "scale": NaN}',
        b'{"x": 1, "scale": Infinity}',
        b'{"x": 1, "unknown": 2}',
        b'{"x": 1, "names": ["\xff"]}',
        b"\xff\xfe\x00",
    ],
)
def test_every_other_document_raises_one_exception(content):
    with pytest.raises(InvalidJsonError):
        parse_json(content, Point)


def test_half_a_surrogate_pair_of_a_file_name_is_replaced():
    names = ("caf\udce9.mp4", "\U0001f600", "\\\\ud800", "\ud83d")
    read = parse_json(json.dumps({"x": 1, "names": names}).encode(), Point).names
    assert read == ("caf\ufffd.mp4", "\U0001f600", "\\\\ud800", "\ufffd")


def test_the_message_names_the_place_and_shows_no_foreign_text():
    with pytest.raises(InvalidJsonError, match=r"^names\.1: Input should be a valid string$"):
        parse_json(b'{"x": 1, "names": ["a", 5]}', Point)
    with pytest.raises(InvalidJsonError) as caught:
        parse_json(b'{"x": 1, "\\u001b[31m": 2}', Point)
    assert "\x1b" not in str(caught.value)


def test_a_million_faults_give_a_short_message():
    content = b'{"x": 1, ' + b",".join(b'"k%d": 1' % number for number in range(100_000)) + b"}"
    with pytest.raises(InvalidJsonError, match=r"^100000 of its values are wrong$"):
        parse_json(content, Point)


def test_a_document_over_the_limit_is_not_parsed(tmp_path):
    with pytest.raises(InvalidJsonError, match="more than 5 bytes"):
        parse_json(b'{"x": 1}', Point, limit=5)
    file = tmp_path / "large.json"
    file.write_bytes(b" " * 100)
    assert len(read_limited(file, 100)) == 100
    with pytest.raises(InvalidJsonError, match="more than 99 bytes"):
        load_json(file, Point, limit=99)


def test_devices_and_pipes_are_not_read(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(InvalidJsonError, match="not a regular file"):
            read_limited(path, 100)

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator, Field

from motionmae.json_text import JSON_LIMIT, InvalidJsonError, JsonModel, load_json, parse_json, read_limited


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


@pytest.mark.parametrize(
    ("faults", "message"), [(100, "k0: Extra inputs are not permitted"), (101, "101 of its values are wrong")]
)
def test_up_to_a_hundred_faults_the_first_is_named(faults, message):
    content = json.dumps({"x": 1, **{f"k{number}": 1 for number in range(faults)}})
    with pytest.raises(InvalidJsonError, match=f"^{message}$"):
        parse_json(content.encode(), Point)


class Checked(JsonModel):
    name: Annotated[str, Field(pattern="^[a-z]+$")] = "a"
    even: Annotated[int, AfterValidator(lambda number: refuse_odd(number))] = 0


def refuse_odd(number: int) -> int:
    if number % 2:
        raise ValueError("it is odd")
    return number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "A"}, "name: String should have another form"),
        ({"even": 3}, "even: it is odd"),
        ({"k" * 41: 3}, "k" * 40 + "...: Extra inputs are not permitted"),
        ({"k" * 40: 3}, "k" * 40 + ": Extra inputs are not permitted"),
        ([], "Input should be an object"),
    ],
)
def test_the_message_is_the_middle_of_a_sentence(content, message):
    with pytest.raises(InvalidJsonError) as caught:
        parse_json(json.dumps(content).encode(), Checked)
    assert str(caught.value) == message
    assert caught.value.__cause__ is None  # it would keep the document in memory


@pytest.mark.parametrize("values", [b"[", b"{", b","])
def test_a_document_of_too_many_values_is_not_parsed(values):
    for number, message in ((2_000_001, "it has more than 2000000 values"), (2_000_000, "Invalid JSON")):
        with pytest.raises(InvalidJsonError, match=f"^{message}"):
            parse_json(values * number, list[int])


def test_a_document_at_the_limit_is_parsed(tmp_path):
    assert parse_json(b"[1]", list[int], limit=3) == [1]
    (tmp_path / "x.json").write_bytes(b"[1]")
    assert load_json(tmp_path / "x.json", list[int], limit=3) == [1]
    assert JSON_LIMIT == 67_108_864


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

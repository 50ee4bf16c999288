"""Manifests and states that a stranger wrote end in a defect or in one sentence, and lead to no other file."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from motionmae.errors import UserError
from motionmae.json_text import JsonModel
from motionmae.runs.checkpoint_manifest import Checkpoint, Count, defect_of, describe, read_manifest

FILE = {"name": "model.safetensors", "bytes": 3, "sha256": "0" * 64, "tensors": ["a"]}
MANIFEST = {"format": 1, "step": 4, "position": 4, "files": [FILE]}
HUGE = "9" * 5000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def read(folder: Path, content: bytes) -> Checkpoint | str | OSError:
    (folder / "manifest.json").write_bytes(content)
    return read_manifest(folder)


def manifest(**changes: Any) -> bytes:
    return json.dumps({**MANIFEST, **changes}).encode()


def with_file(**changes: Any) -> bytes:
    return manifest(files=[{**FILE, **changes}])


NAMES = [
    "/dev/zero",
    "../../config.yaml",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "a\0",
    "a\n",
    "-rf",
    "x" * 300,
    5,
    None,
    ["a"],
]
CONTENTS = {
    **{f"name {name!r}"[:30]: with_file(name=name) for name in NAMES},
    "bytes a text": with_file(bytes="3"),
    "bytes negative": with_file(bytes=-3),
    "bytes a fraction": with_file(bytes=3.0),
    "bytes true": with_file(bytes=True),
    "no checksum": with_file(sha256="zero"),
    "tensors a text": with_file(tensors="abc"),
    "a file twice": manifest(files=[FILE, FILE]),
    "files an object": manifest(files={"name": FILE}),
    "step infinite": manifest().replace(b'"step": 4', b'"step": 1e400'),
    "step huge": manifest().replace(b'"step": 4', f'"step": {HUGE}'.encode()),
    "step NaN": manifest(step=float("nan")),
    "step a text": manifest(step="12"),
    "step negative": manifest(step=-1),
    "position infinite": manifest().replace(b'"position": 4', b'"position": -1e400'),
    "format a list": manifest(format=[1]),
    "format huge": manifest().replace(b'"format": 1', f'"format": {HUGE}'.encode()),
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "not UTF-8": b'{"format": "\xff"}',
    "empty": b"",
    "a list": b"[]",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_hostile_manifest_is_a_defect(tmp_path: Path, content: bytes):
    found = read(tmp_path, content)
    assert isinstance(found, str)
    assert found.startswith("manifest.json is not readable: ")
    assert found.isprintable()


def test_a_whole_manifest_is_read(tmp_path: Path):
    found = read(tmp_path, manifest(position=None, from_a_newer_version=1))
    assert isinstance(found, Checkpoint)
    assert (found.step, found.position, found.files[0].tensors) == (4, 4, ("a",))


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["format", "step", "position", "files", "name", "bytes", "sha256", "tensors"]), JSON)
def test_any_value_in_any_place_is_read_or_a_defect(tmp_path: Path, key: str, value: Any):
    content = manifest(**{key: value}) if key in MANIFEST else with_file(**{key: value})
    with suppress(UserError):  # another version of the format
        assert isinstance(read(tmp_path, content), (Checkpoint, str))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [device, os.mkfifo, Path.mkdir])
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / FILE["name"])
    found = read(tmp_path, with_file(bytes=(tmp_path / FILE["name"]).stat().st_size))
    assert defect_of(found) == "model.safetensors is not a regular file"
    (tmp_path / "manifest.json").unlink()
    make(tmp_path / "manifest.json")
    assert read_manifest(tmp_path) == "manifest.json is not readable: it is not a regular file"


def test_a_file_may_be_a_link(tmp_path: Path):
    (tmp_path / "archive").write_bytes(b"abc")
    (tmp_path / FILE["name"]).symlink_to(tmp_path / "archive")
    assert defect_of(read(tmp_path, with_file(sha256=describe(tmp_path / "archive").sha256))) == ""


class Progress(JsonModel, extra="ignore"):
    trainer: dict[str, Count]


STATES = [b"", b"[]", b"{}", b'{"trainer": 1}', b'{"trainer": {"step": 1e400}}', b'{"trainer": {"step": "<b>"}}',
          b'{"trainer": ' * 50_000, b'{"trainer": {"step": -1}}', b"\xff", None]  # fmt: skip


@pytest.mark.parametrize("content", STATES)
def test_a_hostile_state_is_one_sentence(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(UserError, match=r"state\.json is damaged .*: choose another checkpoint"):
        Checkpoint(tmp_path, 4, (), 4).state(Progress)

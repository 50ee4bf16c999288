"""Manifests and states that a stranger wrote end in a defect or in one sentence, and lead to no other file."""

import errno
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
from motionmae.runs.checkpoint_manifest import (
    Checkpoint,
    Count,
    FileEntry,
    defect_of,
    describe,
    manifest_content,
    read_manifest,
)
from motionmae.runs.end_reason import StorageError

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


def test_a_link_to_an_absent_archive_is_a_failure_of_storage(tmp_path: Path):
    link = tmp_path / "step-00000004"
    link.symlink_to(tmp_path / "archive")
    found = read_manifest(link)
    assert isinstance(found, OSError)
    assert (found.errno, found.strerror) == (errno.ENOENT, f"it is a link to {tmp_path}/archive, which is absent")
    with pytest.raises(OSError, match="which is absent"):
        defect_of(found)
    (tmp_path / "archive").mkdir()
    assert read_manifest(link) == "manifest.json: No such file or directory"
    assert read_manifest(tmp_path / "archive") == "manifest.json: No such file or directory"


def test_a_manifest_says_size_step_and_position(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    entry = describe(tmp_path / "a", ("weight",))
    # echo -n abc | sha256sum
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert entry == FileEntry("a", 3, sha256, ("weight",))
    content = manifest_content(5, 9, [entry, FileEntry("b", 4, sha256)])
    assert content["format"] == 1
    found = read(tmp_path, json.dumps(content).encode())
    assert found == Checkpoint(tmp_path, 5, (entry, FileEntry("b", 4, sha256)), 9)
    assert found.bytes == 7
    assert (found.source, found.on_disk) == ("disk", tmp_path.name)
    assert [found.reader(index, "any", 3) for index in range(5)] == [0, 1, 2, 0, 1]


def test_the_first_damaged_file_is_named(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_bytes(b"abc")
    entries = [describe(tmp_path / name) for name in "abc"]
    checkpoint = Checkpoint(tmp_path, 1, tuple(entries), 1)
    assert checkpoint.defect() == ""
    (tmp_path / "c").unlink()
    (tmp_path / "b").write_bytes(b"abd")
    assert checkpoint.defect() == "b does not have the sha256 of its manifest"
    assert checkpoint.defect(sizes_only=True) == "c: No such file or directory"
    assert defect_of(checkpoint, sizes_only=True) == "c: No such file or directory"
    assert defect_of("broken") == "broken"
    (tmp_path / "a").write_bytes(b"abcd")
    assert checkpoint.defect() == "a has 4 bytes, its manifest says 3"


def test_names_and_numbers_of_a_manifest_have_limits(tmp_path: Path):
    for good in (with_file(name="x" * 121), with_file(bytes=2**53 - 1), manifest(step=2**53 - 1), manifest(position=0)):
        assert isinstance(read(tmp_path, good), Checkpoint)
    for bad in (with_file(name="x" * 122), with_file(bytes=2**53), manifest(step=2**53), with_file(sha256="A" * 64)):
        assert isinstance(read(tmp_path, bad), str)


@pytest.mark.parametrize("version", [0, 2])
def test_another_format_is_refused(tmp_path: Path, version: int):
    with pytest.raises(UserError, match=f"is a checkpoint of format {version}, but this version reads format 1"):
        read(tmp_path, manifest(format=version, files="of another form"))


def test_a_state_that_storage_does_not_give_is_not_damaged(tmp_path: Path):
    (tmp_path / "state.json").symlink_to("state.json")
    with pytest.raises(StorageError, match="cannot be read"):
        Checkpoint(tmp_path, 4, (), 4).state()

import json
from dataclasses import replace

import pytest

from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.format import ShardEntry
from motionmae.data.shards.manifest import MANIFEST, EncoderSettings, Manifest, write_manifest
from motionmae.errors import UserError


@pytest.fixture
def manifest():
    return Manifest(
        dataset="toy",
        split="train",
        class_names=("left", "right"),
        encoder=EncoderSettings(short_side=256, jpeg_quality=90, stride=2, clips=3),
        shards=(ShardEntry("a.tar", "ab" * 32, 1000, 5, "12" * 32), ShardEntry("b.tar", "cd" * 32, 900, 4, "34" * 32)),
        quarantined=2,
        split_file="train.csv",
        split_sha256="ef" * 32,
        versions={"av": "18.1.0"},
    )


def test_round_trip(tmp_path, manifest):
    write_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path) == manifest
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert (content["samples"], content["quarantined"], len(content["shards"])) == (9, 2, 2)
    assert (content["format_version"], content["order_version"]) == (2, 1)
    row = {"name": "a.tar", "sha256": "ab" * 32, "bytes": 1000, "samples": 5, "index_sha256": "12" * 32}
    assert content["shards"][0] == row


def test_fingerprint_is_of_the_samples(manifest):
    first, second = manifest.shards
    assert replace(manifest, versions={}, quarantined=0).fingerprint == manifest.fingerprint
    for shards in ((second, first), (first,), (first, replace(second, sha256="00" * 32))):
        assert replace(manifest, shards=shards).fingerprint != manifest.fingerprint


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist: give the --out folder of make_shards"):
        load_manifest(tmp_path / "absent")


def test_unfinished_folder(tmp_path):
    with pytest.raises(UserError, match=r"has no manifest.json.*make` again to finish it"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "no json"])
def test_no_manifest_at_all(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match="is not a manifest of shards"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format version 1, but this program reads version 2: make the shards again"),
        ({"samples": 10}, "says 10 samples, but its shards hold 9"),
        ({"samples": 8}, "says 8 samples, but its shards hold 9"),
        ({"format_version": 3}, "format version 3, but this program reads version 2"),
        ({"shards": [{"name": "a.tar"}]}, "damaged"),
        ({"surprise": 1}, "damaged"),
        ({"encoder": {"short_side": 256, "jpeg_quality": 90, "encoding": "bmp"}}, "frames have the encoding bmp"),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path, manifest, change, message):
    write_manifest(tmp_path, manifest)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path)


def test_videos_and_the_parent_of_shards_are_told_apart(tmp_path):
    videos, parent = tmp_path / "videos", tmp_path / "parent"
    (videos / "class").mkdir(parents=True)
    (videos / "class/a.MP4").touch()
    with pytest.raises(UserError, match=rf"these are videos.* shards make folder --videos {videos} --out"):
        load_manifest(videos)
    for split in ("train", "val"):
        (parent / split).mkdir(parents=True)
        (parent / split / "manifest.json").touch()
    with pytest.raises(UserError, match=rf"so choose {parent}/train or {parent}/val"):
        load_manifest(parent)

"""Samples that only motion tells apart, from shards whose pixels encode the numbers of their frames."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset

from motionmae.data.flow import encode_flow
from motionmae.data.open_shards import load_manifest, open_reader
from motionmae.data.shards.format import ShardWriter
from motionmae.data.shards.manifest import EncoderSettings, Manifest, write_manifest
from tests.commands.functions import motion_labels, verify
from tests.data.made_shards import frame_numbers, make_shards, meta, picture

FRAMES = 9


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", (3, 2), frames=FRAMES)
    return tmp_path / "shards"


def samples_of(folder: Path) -> list[tuple[int, list[int]]]:
    """Return label and frame numbers of each sample, read by the pixels of its frames."""
    reader = open_reader(folder)
    found = []
    for sample in range(reader.manifest.samples):
        meta = reader.read_meta(sample)
        jpegs = reader.read_frames(sample, range(meta.frames))
        clip = np.stack([simplejpeg.decode_jpeg(bytes(jpeg)) for jpeg in jpegs])
        found.append((meta.label, frame_numbers(clip)))
        assert len(reader.read_json(sample)["times"]) == meta.frames
    return found


@pytest.mark.parametrize(
    ("task", "classes", "first", "second"),
    [
        ("arrow", ("forward", "backward"), list(range(9)), list(range(8, -1, -1))),
        ("speed", ("normal", "double"), [2, 3, 4, 5], [0, 2, 4, 6]),
    ],
)
def test_each_video_gives_a_sample_of_each_class(shards, tmp_path, capsys, task, classes, first, second):
    out = tmp_path / "out"
    assert motion_labels([str(shards), "--task", task, "--out", str(out)]) == 0
    assert f"10 samples, {' and '.join(classes)}" in capsys.readouterr().out
    assert open_reader(out).manifest.class_names == classes
    assert samples_of(out) == [(0, first), (1, second)] * 5
    assert verify([str(out)]) == 0
    tars = sorted(map(str, out.glob("*.tar")))
    assert len({sample["__key__"] for sample in webdataset.WebDataset(tars[:1], shardshuffle=False)}) == 6


def test_shuffled_parts_keep_their_frames_and_depend_on_seed_alone(shards, tmp_path):
    runs = {name: tmp_path / name for name in ("a", "b", "c")}
    for (name, out), seed in zip(runs.items(), (0, 0, 1), strict=True):
        assert motion_labels([str(shards), "--task", "order", "--out", str(out), "--seed", str(seed)]) == 0, name
    found = {name: samples_of(out) for name, out in runs.items()}
    parts = [[0, 1, 2], [3, 4], [5, 6], [7, 8]]
    for label, numbers in found["a"]:
        assert sorted(numbers) == list(range(FRAMES))
        assert (numbers == sorted(numbers)) == (label == 0)
        assert all(numbers[numbers.index(part[0]) :][: len(part)] == part for part in parts)
    assert open_reader(runs["a"]).manifest.fingerprint == open_reader(runs["b"]).manifest.fingerprint
    assert found["a"] != found["c"]


def test_short_videos_are_counted_and_a_folder_without_others_is_refused(tmp_path, capsys):
    make_shards(tmp_path / "shards", (2,), frames=7)
    assert motion_labels([str(tmp_path / "shards"), "--task", "order", "--out", str(tmp_path / "out")]) == 2
    assert "has the 8 frames that --task order needs" in capsys.readouterr().err
    assert motion_labels([str(tmp_path / "shards"), "--task", "speed", "--out", str(tmp_path / "speed")]) == 0
    assert Counter(label for label, _ in samples_of(tmp_path / "speed")) == {0: 2, 1: 2}


def test_a_folder_that_holds_something_and_windows_of_videos_are_refused(shards, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    assert motion_labels([str(shards), "--task", "arrow", "--out", str(full)]) == 2
    assert "is not empty" in capsys.readouterr().err
    manifest = open_reader(shards).manifest
    encoder = type(manifest.encoder)(**{**vars(manifest.encoder), "clips": 2, "window": 4})
    write_manifest(shards, type(manifest)(**{**vars(manifest), "encoder": encoder}))
    assert motion_labels([str(shards), "--task", "arrow", "--out", str(tmp_path / "out")]) == 2
    assert "needs whole videos" in capsys.readouterr().err.replace("\n", " ")


def test_the_manifest_is_that_of_the_videos_without_flow_and_quarantine(tmp_path):
    source, out = tmp_path / "shards", tmp_path / "out"
    source.mkdir()
    jpegs, flow = [picture(number, 16, 24) for number in range(FRAMES)], encode_flow(np.zeros((16, 24, 2), np.float32))
    with ShardWriter(source / "a.tar") as shard:
        shard.write("0", jpegs, meta(FRAMES, 16, 24), [flow] * FRAMES)
    encoder = EncoderSettings(short_side=16, jpeg_quality=95, flow_distance=2)
    given = Manifest("toy", "train", ("none",), encoder, (shard.entry,), quarantined=3)
    write_manifest(source, given)
    assert motion_labels([str(source), "--task", "arrow", "--out", str(out)]) == 0
    made = load_manifest(out)
    assert [(shard.name, shard.samples) for shard in made.shards] == [("arrow-000000.tar", 2)]
    expected = {"dataset": "toy-arrow", "class_names": ("forward", "backward"), "quarantined": 0}
    assert made == replace(given, encoder=replace(encoder, flow_distance=0), shards=made.shards, **expected)

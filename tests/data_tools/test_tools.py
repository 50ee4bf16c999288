"""verify, stats and preview on shards of small videos, intact and damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from data_tools.stats import NAMED_CLASSES, class_bars, collect, print_tables
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.format import ShardWriter
from motionmae.data.shards.manifest import write_manifest
from tests.commands.functions import preview, stats, verify
from tests.data.made_shards import make_shards, meta, picture
from tests.data_tools.make_shards.runs import make, small_set

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    assert make(small_set(folder / "videos"), folder / "shards") == 0
    return folder / "shards"


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "shards")


def test_intact_shards_are_reported_as_intact(made, capsys):
    assert verify([str(made), "--decode", "100"]) == 0
    assert "is intact: 12 samples in 5 shards" in capsys.readouterr().out


def damage(folder: Path, kind: str) -> str:
    shard = folder / "all-000001.tar"
    if kind == "flip":
        content = bytearray(shard.read_bytes())
        content[content.index(b"\xff\xd8\xff") + 300] ^= 1
        shard.write_bytes(content)
        return "checksum"
    if kind == "truncate":
        os.truncate(shard, shard.stat().st_size - 1000)
        return "truncated_shard"
    if kind == "index":
        index = folder / "all-000001.idx.json"
        index.write_text(index.read_text().replace('"fps":[2', '"fps":[3'))
        return "bad_index"
    if kind == "stride":
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"stride": 1', '"stride": 2'))
        return "bad_index"
    if kind == "remove":
        shard.unlink()
        return "missing_shard"
    shutil.copy(folder / "all-000002.tar", shard)
    shutil.copy(folder / "all-000002.idx.json", folder / "all-000001.idx.json")
    return "replaced_shard"


@pytest.mark.parametrize("kind", ["flip", "index", "truncate", "remove", "replace"])
def test_damage_is_named_with_its_shard_and_the_remedy(copy, capsys, kind):
    reason = damage(copy, kind)
    assert verify([str(copy)]) == 1
    errors = capsys.readouterr().err
    assert f"{reason}: " in errors.splitlines()[0]
    assert "damaged: all-000001.tar" in errors
    assert errors.splitlines()[-1].startswith("1 of 5 shards are damaged: copy them again")


def test_a_shard_that_is_only_unreadable_is_not_to_be_deleted(copy, capsys):
    damage(copy, "flip")
    shard = copy / "all-000003.tar"
    shard.unlink()
    shard.symlink_to(shard.name)  # ELOOP, which root meets too
    assert verify([str(copy)]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "1 of 5 shards are damaged: copy them again from an intact folder, or delete them and repeat the command that "
        "made them (all-000001.tar)",
        "1 of 5 shards are unreadable: check their permissions and their disk, and verify them again (all-000003.tar)",
    ]


def test_a_stride_that_differs_from_the_manifest_is_damage(copy, capsys):
    reason = damage(copy, "stride")
    assert verify([str(copy)]) == 1
    assert f"{reason}: " in capsys.readouterr().err


def test_the_remedy_works(made, copy, capsys):
    damage(copy, "flip")
    (copy / "all-000001.tar").unlink()
    assert make(made.parent / "videos", copy) == 0
    assert verify([str(copy)]) == 0
    assert (copy / "all-000001.tar").read_bytes() == (made / "all-000001.tar").read_bytes()


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_first_middle_or_last_frame_that_is_no_picture_is_damage(made, tmp_path, capsys, bad):
    manifest = load_manifest(made)
    jpegs = [picture(number, 48, 64) for number in range(5)]
    jpegs[bad] = b"no picture"
    with ShardWriter(tmp_path / "x.tar") as shard:
        shard.write("0", jpegs, meta(5, 48, 64))
    write_manifest(tmp_path, type(manifest)(**{**vars(manifest), "shards": (shard.entry,)}))
    assert verify([str(tmp_path), "--decode", "0"]) == 0
    assert verify([str(tmp_path)]) == 1
    assert f"x.tar:0: decode: frame {bad}" in capsys.readouterr().err


@pytest.mark.parametrize("tool", [verify, stats, preview], ids=["verify", "stats", "preview"])
def test_a_folder_without_shards_is_answered_in_a_sentence(tmp_path, capsys, tool):
    assert tool([str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
    assert tool([str(tmp_path / "gone")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_stats_count_what_is_there(made, tmp_path, capsys):
    picture, figures = tmp_path / "classes.png", tmp_path / "stats.json"
    assert stats([str(made), "--json", str(figures), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "12 videos (12 labelled), 138 frames" in " ".join(printed.split())
    content = json.loads(figures.read_text())
    assert content["frames"] == sum(range(6, 18)) == 138
    assert content["frames_per_video"] == [6, 11.5, 17]
    assert content["seconds_per_video"][1] == pytest.approx(11.5 / 25, rel=0.02)
    assert content["classes"] == {"a": 6, "b": 6}
    assert content["quarantined"] == {"empty": 1, "no_video_stream": 1}
    assert content["short_side"] == [48, 48, 48]
    assert cv2.imread(str(picture)).shape[1] > 500


@pytest.mark.parametrize(("unit", "named"), [("video", "9 videos"), ("segment", "9 segments of 4 videos")])
def test_the_tables_of_stats_say_what_they_count(capsys, monkeypatch, unit, named):
    monkeypatch.setenv("COLUMNS", "120")
    figures = {
        "dataset": "toy", "split": "train", "samples": 9, "videos": 4 if unit == "segment" else 9, "labelled": 8,
        "quarantined": {"empty": 2}, "shards": 3, "bytes": 7_000_000, "frames": 100, "bytes_per_frame": 70_000,
        f"frames_per_{unit}": [1, 2, 3.5], f"seconds_per_{unit}": [], "fps": [25, 25, 30], "short_side": [16, 20, 24],
        "hours": 1.239, "classes": {"small": 1, "large": 40, "middle": 20, "none": 0},
    }  # fmt: skip
    print_tables(figures, Path("data/toy"), 2)
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "toy train: data/toy",
        f"frames per {unit} 1 2 3.5",
        f"seconds per {unit} unknown unknown unknown",
        f"{named} (8 labelled), 100 frames, 1.24 hours, 7.0 MB in 3 shards, 70.0 kB a frame; quarantined: 2 empty",
        "4 classes",
        "large 40 " + "█" * 40,
        "middle 20 " + "█" * 20,
        f"and 2 more classes, the smallest with 0 {unit}s",
    ):
        assert line in lines
    assert not any(line.startswith("small ") for line in lines)


def test_the_picture_names_classes_and_sums_up_the_rest_of_many():
    assert class_bars({"a": 1, "b": 3, "c": 2}) == [("b", 3), ("c", 2), ("a", 1)]
    many = {f"class {number}": 1000 - number for number in range(NAMED_CLASSES + 3)}
    bars = class_bars(many)
    assert len(bars) == NAMED_CLASSES + 1
    assert bars[-1] == ("each of the other 3 (median)", 1000 - (NAMED_CLASSES + 1))


def test_seconds_count_the_frames_that_a_stride_left_out(tmp_path):
    """50 stored frames of each 200, of which 25 are in a second: 8 seconds."""
    found = collect(tmp_path, make_shards(tmp_path, (3, 2), frames=50, stride=4))
    times = {"seconds_per_video": [8, 8, 8], "fps": [25, 25, 25], "hours": 0.0111}
    expected = {"samples": 5, "videos": 5, "labelled": 5, "shards": 2, "frames": 250, "frames_per_video": [50, 50, 50]}
    assert (expected | times).items() <= found.items()


@pytest.mark.parametrize("others", [[], [25.0]])
def test_stats_survive_shards_with_unknown_rates(made, tmp_path, capsys, others):
    """As earlier versions stored them for a camera whose clock had jumped."""
    meta = {"label": 0, "class_name": "a", "source": "a.mp4", "frames": 1, "stride": 1, "times": [0.0]}
    with ShardWriter(tmp_path / "x.tar") as shard:
        for number, fps in enumerate([0.0, 1e-300, *others]):
            shard.write(str(number), [b"picture"], {**meta, "fps": fps, "height": 48, "width": 64})
    write_manifest(tmp_path, type(load_manifest(made))(**{**vars(load_manifest(made)), "shards": (shard.entry,)}))
    assert stats([str(tmp_path), "--json", str(tmp_path / "stats.json")]) == 0
    figures = json.loads((tmp_path / "stats.json").read_text())
    assert figures["seconds_per_video"] == [0.04] * 3 * len(others)
    assert figures["fps"] == [25] * 3 * len(others)
    assert ("unknown" in capsys.readouterr().out) == (not others)


@pytest.mark.parametrize(
    ("tool", "option", "name"), [(stats, "--picture", "classes.doc"), (preview, "--out", "sheet.gif")]
)
def test_pictures_of_another_kind_are_refused_before_the_work(tmp_path, capsys, tool, option, name):
    with pytest.raises(SystemExit):
        tool([str(tmp_path / "not_looked_at"), option, str(tmp_path / name)])
    assert " must end in .png or " in capsys.readouterr().err


def test_stats_of_a_damaged_index_point_to_verify(copy, capsys):
    (copy / "all-000001.idx.json").write_text("{")
    assert stats([str(copy)]) == 2
    assert "verify" in capsys.readouterr().err


def test_preview_draws_a_row_a_video(made, tmp_path, capsys):
    sheets = {}
    for name, options in {"few": ["--videos", "3"], "many": [], "others": ["--videos", "3", "--seed", "1"]}.items():
        out = tmp_path / f"{name}.png"
        assert preview([str(made), "--out", str(out), "--frames", "4", "--height", "48", *options]) == 0
        sheets[name] = cv2.imread(str(out))
    assert sheets["few"].shape[0] * 4 == sheets["many"].shape[0] == 12 * (18 + 48 + 4)
    assert 4 * 64 < sheets["few"].shape[1] < 4 * 100
    assert sheets["few"].shape != sheets["others"].shape or (sheets["few"] != sheets["others"]).any()
    assert preview([str(made), "--frames", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --")


@pytest.mark.parametrize("tool", ["verify", "stats", "preview"])
@pytest.mark.parametrize("how", ["folder", "module"])
def test_both_ways_of_starting_the_tools_work(made, tmp_path, tool, how):
    start = [f"data_tools/{tool}"] if how == "folder" else ["-m", f"data_tools.{tool}"]
    more = ["--out", str(tmp_path / "p.png")] if tool == "preview" else []
    result = subprocess.run(
        [sys.executable, *start, str(made), *more], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert result.stdout

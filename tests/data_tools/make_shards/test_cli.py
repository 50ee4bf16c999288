import argparse
import contextlib
import json
import os
import subprocess
import sys

import pytest

from data_tools.make_shards import cli
from motionmae.data.open_shards import load_manifest, open_reader
from tests.commands.functions import make_shards as main
from tests.data_tools.make_shards.runs import ROOT, arguments, fingerprint, make, manifest, quarantine, small_set, start
from tests.data_tools.videos import draw_frames, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "deep" / "out"
    assert make(videos, out) == 0
    return out


def test_every_video_is_sharded_or_quarantined(videos, made):
    content = manifest(made)
    assert (content["samples"], content["quarantined"], content["dataset"]) == (12, 2, "folder")
    assert [shard["name"] for shard in content["shards"]] == [f"all-{number:06d}.tar" for number in range(5)]
    assert content["class_names"] == ["a", "b"]
    assert set(content["versions"]) == {"av", "libavcodec", "libswscale", "simplejpeg"}
    assert quarantine(made) == {"a/zero.mp4": "empty", "b/sound.m4a": "no_video_stream"}
    reader = open_reader(made, load_manifest(made))
    frames = {}
    for sample in range(12):
        meta = reader.read_meta(sample)
        assert (meta.height, meta.stride) == (48, 1)
        frames[meta.width, meta.label] = meta.frames
    assert frames == {(64 + 2 * index, index % 2): 6 + index for index in range(12)}


def test_plain_tar_and_webdataset_read_the_shards(videos, made):
    import webdataset

    shards = sorted(map(str, made.glob("*.tar")))
    listed = subprocess.run(["tar", "tf", shards[0]], capture_output=True, text=True, check=True).stdout.split()
    assert [name.partition(".")[2] for name in listed[:3]] == ["crcs", "jpgs", "json"]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 12
    sources = set()
    for sample in samples:
        meta = json.loads(sample["json"])
        sources.add(meta["source"])
        assert (videos / meta["source"]).is_file()
        assert meta["class_name"] == meta["source"][0]
        assert meta["frames"] == meta["source_frames"] == len(meta["times"])
        assert sample["jpgs"][4 * (meta["frames"] + 1) :].startswith(b"\xff\xd8\xff")
    assert len(sources) == 12


@pytest.mark.parametrize("workers", ["2", "4"])
def test_bytes_do_not_depend_on_the_number_of_workers(videos, made, tmp_path, workers):
    """``made`` was made with one worker."""
    assert make(videos, tmp_path / "out", "--workers", workers) == 0
    assert fingerprint(tmp_path / "out") == fingerprint(made)


def test_a_second_run_does_nothing_and_says_so(videos, made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.name != "lock"}
    assert make(videos, made) == 0
    assert "is complete: 12 videos in 5 shards, 2 quarantined; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.name != "lock"} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--quality", "80"), "quality=90, and this run has quality=80"),
        (("--short-side", "32"), "short_side=256, and this run has short_side=32"),
        (("--stride", "2"), "stride=1, and this run has stride=2"),
        (("--clips", "2", "--window", "8"), "clips=0, window=64, and this run has clips=2, window=8"),
        (("--samples-per-shard", "4"), "samples_per_shard=3, and this run has samples_per_shard=4"),
        (("--flow", "2"), "flow=0, and this run has flow=2"),
        (("--raw",), "raw=False, and this run has raw=True"),
        (("--seed", "1"), "seed=0, and this run has seed=1"),
        (("--split", "mine"), "split=all, and this run has split=mine"),
    ],
)
def test_another_setting_is_refused_and_would_have_changed_the_bytes(videos, made, tmp_path, capsys, change, named):
    before = fingerprint(made)
    assert make(videos, made, *change) == 2
    assert named in capsys.readouterr().err
    assert fingerprint(made) == before
    assert make(videos, tmp_path / "out", *change) == 0
    shards = {name: value for name, value in fingerprint(tmp_path / "out").items() if name.endswith(".tar")}
    assert not shards.items() <= before.items()


def test_other_videos_are_refused_in_the_same_folder(made, tmp_path, capsys):
    assert make(small_set(tmp_path / "videos", 3), made) == 2
    assert "videos=14, videos_hash=" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tar").touch()
    assert make(tmp_path / "videos", tmp_path / "other") == 2
    assert "holds shards that this command did not start" in capsys.readouterr().err


def test_a_damaged_video_leaves_its_place_empty_and_the_others_alone(videos, made, tmp_path, capsys):
    copy = small_set(tmp_path / "videos")
    (copy / "a" / "04.avi").write_bytes(b"gone bad")
    out = tmp_path / "out"
    assert make(copy, out) == 0
    assert "2 empty" not in capsys.readouterr().out
    assert quarantine(out)["a/04.avi"] == "not_a_video"
    before, after = fingerprint(made), fingerprint(out)
    changed = [name for name in before if name.endswith(".tar") and before[name] != after.get(name)]
    assert len(changed) == 1
    everything, reader = open_reader(made, load_manifest(made)), open_reader(out, load_manifest(out))
    stored = {everything.read_meta(sample).key: everything.read_frames(sample, [0]) for sample in range(12)}
    for sample in range(11):
        assert reader.read_frames(sample, [0]) == stored[reader.read_meta(sample).key]

    # repair the video and retry
    (copy / "a" / "04.avi").write_bytes((videos / "a" / "04.avi").read_bytes())
    figures = tmp_path / "figures.json"
    assert make(copy, out, "--json", str(figures)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert json.loads(figures.read_text())["quarantined"]["not_a_video"] == 1
    assert make(copy, out, "--retry") == 0
    assert fingerprint(out) == before


def test_a_video_that_was_missing_may_be_supplied_wherever_it_lies(tmp_path):
    videos, csv = small_set(tmp_path / "videos"), tmp_path / "validate.csv"
    taken = sorted(path for path in videos.rglob("*.mp4") if path.stat().st_size)[:3]
    for number, path in enumerate(taken):
        path.rename(videos / f"v{number}_000000_000010.mp4")
    rows = "".join(f"c,v{number},0,10,val\n" for number in range(3))
    csv.write_text("label,youtube_id,time_start,time_end,split\n" + rows)
    out = tmp_path / "out"
    argv = ["k400", "--videos", str(videos), "--annotations", str(csv), "--split", "val", "--out", str(out)]
    (videos / "v1_000000_000010.mp4").rename(tmp_path / "held_back.mp4")
    assert main(argv) == 0
    assert list(quarantine(out).values()) == ["missing"]
    (tmp_path / "held_back.mp4").rename(videos / "v1_000000_000010.mp4")
    assert main([*argv, "--retry"]) == 0
    assert (manifest(out)["samples"], quarantine(out)) == (3, {})
    (out / "manifest.json").write_text("{")
    assert main(argv) == 0
    assert manifest(out)["samples"] == 3


def test_strict_tells_of_quarantined_videos_by_its_status(videos, made, tmp_path):
    assert make(videos, made, "--strict") == 3
    good = tmp_path / "videos"
    write_video(good / "a.mp4", draw_frames(4))
    assert make(good, tmp_path / "out", "--strict") == 0


def test_rows_without_video_are_quarantined_as_missing(videos, tmp_path, capsys):
    gone = [f"a/gone{number}.mp4" for number in range(5)]
    (tmp_path / "train.csv").write_text("".join(f"{name} 0\n" for name in ("a/00.mp4", *gone, "b/01.avi")))
    out = tmp_path / "out"
    assert make(videos, out, "--annotations", str(tmp_path), "--split", "train") == 0
    assert "quarantined:  5 missing" in capsys.readouterr().out
    assert list(quarantine(out).items()) == [(name, "missing") for name in gone]  # by path, not by shard
    assert (manifest(out)["samples"], manifest(out)["split_file"]) == (2, "train.csv")


@pytest.mark.parametrize("again", ["a/00.mp4 0", "./a/00.mp4 1", "a/gone.mp4 1"])
def test_a_video_listed_twice_is_refused(videos, tmp_path, capsys, again):
    (tmp_path / "train.csv").write_text(f"a/00.mp4 0\na/gone.mp4 0\n{again}\n")
    assert make(videos, tmp_path / "out", "--annotations", str(tmp_path), "--split", "train") == 2
    assert "train.csv names 1 of its videos more than once, first " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hanging_video_ends_in_the_quarantine(tmp_path):
    videos = tmp_path / "videos"
    write_video(videos / "a.mp4", draw_frames(4))
    os.mkfifo(videos / "hangs.mp4")
    assert make(videos, tmp_path / "out", "--timeout", "1") == 0
    assert quarantine(tmp_path / "out") == {"hangs.mp4": "timeout"}


def test_nothing_usable_is_an_error_each_time(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").touch()
    for _ in range(2):
        assert make(videos, tmp_path / "out") == 2
        assert "none of the 1 videos could be stored" in capsys.readouterr().err
    assert quarantine(tmp_path / "out") == {"a.mp4": "empty"}
    assert not list((tmp_path / "out").glob("*.tar"))


def test_shards_must_not_lie_below_the_videos(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", draw_frames(4))
    assert make(tmp_path, tmp_path / "shards") == 2
    assert "lies in --videos" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_figures_and_skipped_files_are_reported(videos, tmp_path, capsys):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "notes.txt").write_text("x")
    write_video(tmp_path / "v" / "a.mp4", draw_frames(5))
    assert make(tmp_path / "v", tmp_path / "out", "--json", str(tmp_path / "figures.json")) == 0
    assert "skipped:      notes.txt, not videos" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["samples"], figures["frames"], figures["quarantined"]) == (1, 5, {})
    assert figures["bytes"] > 0


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--workers", "0"), "--workers and --timeout must be at least 1"),
        (("--quality", "101"), "--quality 101 is not possible: choose 1 to 100"),
        (("--samples-per-shard", "0"), "--samples-per-shard 0 is not possible"),
    ],
)
def test_impossible_options_are_answered_in_a_sentence(videos, tmp_path, capsys, option, sentence):
    assert make(videos, tmp_path / "out", *option) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_missing_and_empty_folders_are_answered_in_a_sentence(videos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "gone", tmp_path / "out") == 2
    assert "gone does not exist" in capsys.readouterr().err
    assert make(tmp_path / "empty", tmp_path / "out") == 2
    assert "no video is listed in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert make(videos, tmp_path / "file" / "out") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_parts_are_counted_from_0():
    assert [cli._part(text) for text in ("0/1", "0/16", "15/16")] == [(0, 1), (0, 16), (15, 16)]
    for text in ("16/16", "17/16", "0/0", "-1/16", "1.5/16", "a/16", "1/", "/16", "1", "", "0/1/2"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not a part: the parts of 16 are 0/16 to 15/16"):
            cli._part(text)


@pytest.mark.parametrize("as_folder", [True, False])
def test_both_ways_of_starting_it_work_and_are_quiet(tmp_path, as_folder):
    write_video(tmp_path / "v" / "a.mp4", draw_frames(4))
    process = start(tmp_path / "v", tmp_path / "out", as_folder=as_folder)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert "1 videos in 1 shards" in output


def test_a_terminal_shows_progress(videos, tmp_path):
    ours, theirs = os.openpty()
    command = [sys.executable, "data_tools/make_shards", *arguments(videos, tmp_path / "out")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "COLUMNS": "150"}
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    for column in ("14/14", "2 quarantined", "kB", "left"):
        assert column in shown.decode()

"""Videos in segments: shards, resuming, retries, what stays when a video breaks, memory."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_tools.decode import DecodedVideo, QuarantineReason, UndecodableVideo
from data_tools.make_shards import write
from data_tools.make_shards.shard_plan import STATE
from motionmae.config import ClipConfig, DataConfig
from motionmae.data.loader import ClipLoader
from motionmae.data.open_shards import open_reader
from motionmae.errors import UserError
from tests.commands.functions import make_shards as main
from tests.commands.functions import merge, stats, verify
from tests.data_tools.make_shards.in_process import InProcessDecoder
from tests.data_tools.make_shards.runs import ROOT, fingerprint, manifest, quarantine
from tests.data_tools.videos import draw_frames, write_video

SECONDS = {"a/long.mp4": 10, "b/longer.avi": 14, "a/short.mp4": 1}
OPTIONS = ("--segment-seconds", "2", "--samples-per-shard", "3", "--workers", "1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in SECONDS.items():
        write_video(folder / name, draw_frames(25 * seconds), "mpeg4" if name.endswith("avi") else "libx264")
    return folder


def make(videos: Path, out: Path, *more: str) -> int:
    return main(["folder", "--videos", str(videos), "--out", str(out), *OPTIONS, *more])


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "DecodeWorker", InProcessDecoder)
        assert make(videos, out) == 0
    return out


@pytest.fixture
def work(videos, made, tmp_path, monkeypatch):
    """(videos, shards): copies that a test may damage."""
    monkeypatch.setattr(write, "DecodeWorker", InProcessDecoder)
    return shutil.copytree(videos, tmp_path / "videos"), shutil.copytree(made, tmp_path / "out")


def samples(out: Path) -> dict[tuple[str, int], dict]:
    """(source, segment) -> KEY.json of each sample, in the order of the manifest."""
    reader = open_reader(out)
    facts = [reader.read_json(number) for number in range(reader.manifest.samples)]
    return {(one["source"], one["segment"]): one for one in facts}


class BreakingDecoder(InProcessDecoder):
    """Decoder that fails after ``most`` segments of each video."""

    most = 2

    def decode(self, path: Path) -> Iterator[DecodedVideo]:
        for decoded in super().decode(path):
            if decoded.segment == self.most:
                raise UndecodableVideo(QuarantineReason.TIMEOUT, "no frame for 60 s")
            yield decoded


def test_each_segment_is_a_sample_that_says_which_part_it_is(videos, made):
    found = samples(made)
    counts = {name: sum(source == name for source, _ in found) for name in SECONDS}
    assert counts == {"a/long.mp4": 5, "b/longer.avi": 7, "a/short.mp4": 1}
    for (source, segment), facts in found.items():
        assert facts["times"][0] == pytest.approx(2 * segment)
        assert facts["frames"] == len(facts["times"]) == min(50, 25 * (SECONDS[source] - 2 * segment))
        assert (facts["class_name"], facts["last_segment"]) == (source[0], segment == counts[source] - 1)
    names = [shard["name"] for shard in manifest(made)["shards"]]
    assert names == sorted(names) == sorted(path.name for path in made.glob("*.tar"))
    assert sorted(shard["samples"] for shard in manifest(made)["shards"]) == [1, 1, 2, 3, 3, 3]
    assert all(
        name.startswith("all-00000") and name.endswith(("-0000.tar", "-0001.tar", "-0002.tar")) for name in names
    )
    assert verify([str(made)]) == 0


def test_webdataset_reads_the_segments(made):
    import webdataset

    shards = sorted(map(str, made.glob("*.tar")))
    found = [json.loads(one["json"])["segment"] for one in webdataset.WebDataset(shards, shardshuffle=False)]
    assert sorted(found) == sorted([*range(5), *range(7), 0])


def test_the_bytes_are_those_of_any_other_run(videos, made, tmp_path):
    """With decoding processes, two of them, and with parts."""
    out = tmp_path / "out"
    for part in ("0/2", "1/2"):
        assert make(videos, out, "--part", part, "--workers", "2") == 0
    assert make(videos, out) == 0
    assert fingerprint(out) == fingerprint(made)


def test_a_lost_shard_is_made_again_with_the_same_bytes(work, made):
    videos, out = work
    for name in ("tar", "idx.json"):
        (out / f"all-000000-0000.{name}").unlink()
    shutil.rmtree(out / STATE / "lock", ignore_errors=True)
    assert make(videos, out) == 0
    assert fingerprint(out) == fingerprint(made)


@pytest.mark.parametrize("most", [0, 2, 4])
def test_a_video_that_breaks_keeps_its_first_segments(videos, made, tmp_path, monkeypatch, capsys, most):
    out = tmp_path / "out"
    monkeypatch.setattr(BreakingDecoder, "most", most)
    monkeypatch.setattr(write, "DecodeWorker", BreakingDecoder)
    assert make(videos, out) == (2 if most == 0 else 0)
    broken = {name for name, seconds in SECONDS.items() if seconds > 2 * most}
    assert quarantine(out) == dict.fromkeys(broken, "timeout")
    row = json.loads((out / "quarantine.jsonl").read_text().splitlines()[0])
    assert row["error"] == "no frame for 60 s" + (f"; {most} of its segments are stored" if most else "")
    if most:
        assert {segment for source, segment in samples(out) if source == "b/longer.avi"} == set(range(most))
        assert verify([str(out)]) == 0
    monkeypatch.setattr(write, "DecodeWorker", InProcessDecoder)
    assert make(videos, out, "--retry") == 0
    assert (fingerprint(out), quarantine(out)) == (fingerprint(made), {})


@pytest.mark.parametrize("harm", ["remove", "cut", "break"])
def test_no_run_loses_a_segment(work, made, monkeypatch, harm):
    """A shard of each video is lost, and the originals give no more than the shards that are left."""
    videos, out = work
    for shard in out.glob("*-0001.tar"):
        shard.unlink()
    before = {key for key in samples(made) if key[1] < 3 or key[1] >= 6}
    for name in SECONDS:
        if harm == "remove":
            (videos / name).write_bytes(b"")
        elif harm == "cut" and name.endswith("avi"):
            os.truncate(videos / name, (videos / name).stat().st_size // 3)
    monkeypatch.setattr(write, "DecodeWorker", BreakingDecoder if harm == "break" else InProcessDecoder)
    assert make(videos, out) == 0
    assert before <= set(samples(out))
    assert verify([str(out)]) == 0
    assert set(quarantine(out)) == (set() if harm == "cut" else {"a/long.mp4", "b/longer.avi"})
    assert not list(out.glob("*.damaged"))


def test_a_retry_with_nothing_new_changes_no_shard(work, made, capsys):
    videos, out = work
    assert make(videos, out, "--retry") == 0
    assert fingerprint(out) == fingerprint(made)
    (videos / "b" / "longer.avi").write_bytes(b"")
    shard = next(path for path in out.glob("*-0002.tar"))
    shard.unlink()
    assert make(videos, out, "--retry") == 0
    assert {segment for source, segment in samples(out) if source == "b/longer.avi"} == set(range(6))
    assert quarantine(out) == {"b/longer.avi": "empty"}
    assert not list(out.glob("*.damaged"))


def test_figures_count_videos_and_samples(videos, made, tmp_path, capsys):
    assert stats([str(made), "--json", str(tmp_path / "s.json")]) == 0
    figures = json.loads((tmp_path / "s.json").read_text())
    assert (figures["videos"], figures["samples"], figures["hours"]) == (3, 13, round(25 / 3600, 4))
    assert "13 segments of 3 videos" in capsys.readouterr().out
    assert make(videos, made) == 0
    assert "13 segments of 3 videos in 6 shards, 0 quarantined; nothing to do" in capsys.readouterr().out


def test_merged_folders_stay_segments(work, tmp_path):
    videos, out = work
    other = tmp_path / "other"
    (videos / "a" / "long.mp4").unlink()
    assert make(videos, other, "--seed", "1") == 0
    assert merge([str(out), str(other), "--out", str(tmp_path / "merged")]) in (0, 2)  # 2: a shard of both is the same


class TestUsers:
    def test_clips_of_segments_are_loaded(self, made):
        data = DataConfig(shards=str(made), threads=1, prefetch=1)
        with ClipLoader(data, ClipConfig(size=32, frames=8, stride=2), seed=0, batch=4, micro_batch_size=4) as loader:
            batches = loader.batches(0)
            seen = {int(sample) for _ in range(3 * 4) for sample in next(batches).samples}
        assert seen == set(range(13))

    def test_segments_are_not_taken_for_videos(self, made):
        from motionmae.data.open_shards import Sources, check_stored
        from motionmae.data.shards.manifest import check_one_sample_per_video, check_whole

        shards = open_reader(made).manifest
        for check in (check_whole, check_one_sample_per_video):
            with pytest.raises(UserError, match=r"hold segments of videos \(--segment-seconds 2\), which a test would"):
                check(shards, made, "a test")
        data = DataConfig(shards=str(made), sampling="segments")
        with pytest.raises(UserError, match=r"data\.sampling=segments would take for whole videos"):
            check_stored(Sources(data, (shards,)), ClipConfig(frames=8, stride=2), False)


def test_a_folder_of_another_length_is_refused(work, capsys):
    videos, out = work
    assert make(videos, out, "--segment-seconds", "3") == 2
    assert "was started with segment_seconds=2.0, and this run has segment_seconds=3.0" in capsys.readouterr().err


def peak_memory(videos: Path, out: Path, *more: str) -> dict[str, int]:
    """Run the command, and return the largest resident sizes of the command and of its decoding processes in bytes."""
    command = [sys.executable, "data_tools/make_shards", "folder", "--videos", str(videos), "--out", str(out), *more]
    run = psutil.Popen([*command, "--workers", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peak = {"parent": 0, "decoder": 0}

    def watch() -> None:
        while run.is_running() and run.status() != psutil.STATUS_ZOMBIE:
            try:
                peak["parent"] = max(peak["parent"], run.memory_info().rss)
                for child in run.children(recursive=True):
                    peak["decoder"] = max(peak["decoder"], child.memory_info().rss)
            except psutil.Error:
                pass
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = run.communicate(timeout=300)
    watcher.join()
    assert run.returncode == 0, (output, errors)
    return peak


@pytest.mark.parametrize("how", ["segments", "whole"])
def test_memory_does_not_grow_with_the_length(tmp_path, how):
    """Twelve seconds and ten times as long, of noise at quality 100: 8 and 80 MB of frames and more."""
    import numpy as np

    frames = np.random.default_rng(0).integers(0, 256, (24, 256, 256, 3), np.uint8)
    piece = write_video(tmp_path / "piece.mp4", frames, options={"preset": "ultrafast", "crf": "18"})
    peaks = {}
    for name, times in (("short", 6), ("long", 60)):
        video = tmp_path / name / "v.mp4"
        video.parent.mkdir()
        command = ["ffmpeg", "-v", "error", "-stream_loop", str(times - 1), "-i", str(piece), "-c", "copy", str(video)]
        subprocess.run(command, check=True)
        options = ("--segment-seconds", "2") if how == "segments" else ()
        peaks[name] = peak_memory(video.parent, tmp_path / f"{name}_out", "--quality", "100", *options)
        stored = manifest(tmp_path / f"{name}_out")
        assert sum(shard["bytes"] for shard in stored["shards"]) > times * 24 * 60_000
    for process, most in {"decoder": 25e6, "parent": 40e6 if how == "segments" else 100e6}.items():
        assert peaks["long"][process] - peaks["short"][process] < most, peaks
